"""The key that signs administration tokens: an Ed25519 Secret that the first operator makes, once."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from readapt_api import labels
from readapt_api.errors import Terminal
from readapt_api.serving import TOKEN_ALGORITHM, TOKEN_AUDIENCE, token_subject
from readapt_operator.kube.errors import AlreadyExists
from readapt_operator.kube.port import Kube
from readapt_operator.kube.resources import SECRETS, Doc
from readapt_operator.queue import Key

SECRET_NAME = "readapt-operator-signing"  # the name of the Secret, not its content
KEY_FILE = "ed25519.pem"
_LIFETIME = timedelta(seconds=60)


class BadSigningKey(Terminal):
    """The Secret does not hold an Ed25519 private key in PEM."""


class Signer:
    """Signs tokens; pods hold only ``public_pem``."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public_pem = (
            key.public_key()
            .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
            .decode()
        )

    def token(self, base: Key) -> str:
        """A token for the pods of one base, good for a minute."""
        claims = {
            "aud": TOKEN_AUDIENCE,
            "sub": token_subject(base.namespace, base.base),
            "exp": datetime.now(UTC) + _LIFETIME,
        }
        return jwt.encode(claims, self._key, algorithm=TOKEN_ALGORITHM)


async def load_signer(kube: Kube, namespace: str) -> Signer:
    """Reads the Secret, or makes it; of two operators that make it at once one finds the other's."""
    found = await kube.get(SECRETS, namespace, SECRET_NAME)
    if found is None:
        try:
            found = await kube.create(_secret(namespace))
        except AlreadyExists:
            found = await kube.get(SECRETS, namespace, SECRET_NAME)
    return Signer(_read(found or {}))


def _secret(namespace: str) -> Doc:
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return {
        "apiVersion": SECRETS.api_version,
        "kind": SECRETS.kind,
        "metadata": {
            "name": SECRET_NAME,
            "namespace": namespace,
            "labels": {labels.MANAGED_BY: labels.READAPT},
        },
        "type": "Opaque",
        "data": {KEY_FILE: base64.b64encode(pem).decode()},
    }


def _read(secret: Doc) -> Ed25519PrivateKey:
    try:
        pem = base64.b64decode(secret["data"][KEY_FILE])
        key = serialization.load_pem_private_key(pem, password=None)
    except (KeyError, ValueError, TypeError) as error:
        raise BadSigningKey(f"Secret {SECRET_NAME} has no key {KEY_FILE} that can be read") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise BadSigningKey(f"Secret {SECRET_NAME}: {KEY_FILE} is not an Ed25519 key")
    return key
