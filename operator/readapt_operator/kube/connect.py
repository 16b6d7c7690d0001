"""Credentials: KUBECONFIG when it is set, else the service account of the pod (its token file is read again)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import kopf
from kubernetes import config
from kubernetes.client.api_client import ApiClient
from kubernetes.client.configuration import Configuration

from readapt_api.errors import Terminal


class NoCredentials(Terminal):
    """Neither a kubeconfig that can be read nor a service account of a pod."""


def configuration() -> Any:
    """A configuration of its own, made from the files as they are now; raises NoCredentials."""
    loaded = Configuration()
    path = os.environ.get("KUBECONFIG")
    try:
        if path:
            config.load_kube_config(path, client_configuration=loaded, persist_config=False)  # type: ignore[no-untyped-call]
        else:
            config.load_incluster_config(client_configuration=loaded)  # type: ignore[no-untyped-call]
    except config.ConfigException as error:
        where = f"KUBECONFIG={path}" if path else "KUBECONFIG is not set, and this is no pod with a service account"
        raise NoCredentials(f"{where}: {error}") from error
    loaded.retries = False  # one time-out per call: repeats are the queue's business
    loaded.connection_pool_maxsize = 16
    return loaded


def connect() -> Any:
    """The shared ApiClient."""
    client = ApiClient(configuration())
    client.user_agent = "readapt-operator"
    return client


def kopf_credentials() -> kopf.ConnectionInfo:
    """The same credentials for kopf; it asks again when the API server answers 401."""
    now = configuration()
    scheme, _, token = (now.get_api_key_with_prefix("BearerToken") or "").partition(" ")
    return kopf.ConnectionInfo(
        server=now.host,
        ca_path=now.ssl_ca_cert,
        insecure=not now.verify_ssl,
        scheme=scheme.capitalize() or None,
        token=token.strip() or None,
        certificate_path=now.cert_file,
        private_key_path=now.key_file,
    )


def own_namespace() -> str | None:
    """The namespace of the pod that this runs in."""
    path = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
    return path.read_text().strip() if path.exists() else None
