"""Kubeconfig files, self-contained and at mode 0600. JSON is YAML, so every client reads them."""

import base64
import json
from pathlib import Path

from readapt_cluster.certificates import Pair, write_secret


def with_certificate(path: Path, url: str, ca_file: Path, client: Pair, namespace: str = "default") -> Path:
    """A kubeconfig whose user proves itself by `client`'s certificate."""
    user = {"client-certificate-data": _inline(client.certificate), "client-key-data": _inline(client.key)}
    return _write(path, url, ca_file, user, namespace)


def with_token(path: Path, url: str, ca_file: Path, token: str, namespace: str = "default") -> Path:
    """A kubeconfig whose user proves itself by a bearer token."""
    return _write(path, url, ca_file, {"token": token}, namespace)


def _write(path: Path, url: str, ca_file: Path, user: dict[str, str], namespace: str) -> Path:
    name = "readapt"
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": {"server": url, "certificate-authority-data": _inline(ca_file)}}],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": namespace}}],
        "current-context": name,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_secret(path, json.dumps(content, indent=2).encode() + b"\n")
    return path


def _inline(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
