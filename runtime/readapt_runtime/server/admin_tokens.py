"""Who may administer this pod: bearers of short-lived tokens that the operator signs with its Ed25519 key."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt

from readapt_api.errors import Terminal
from readapt_api.serving import TOKEN_ALGORITHM, TOKEN_AUDIENCE

log = logging.getLogger(__name__)
MAX_LIFETIME_S = 600
LEEWAY_S = 30
"""For clocks of two machines that differ."""


class BadPublicKey(Terminal):
    """The key file holds no Ed25519 public key in PEM form."""


class BadToken(Exception):
    """The token is missing, not ours, not for this pod, or too old or too long-lived."""


class TokenCheck:
    """Verifies tokens for one base model with the key in a file; raises BadPublicKey when it holds none at first.

    ``subject`` is whom the tokens must be for, see ``readapt_api.serving.token_subject``.
    """

    def __init__(self, key_file: Path, subject: str, clock: Callable[[], float] = time.time) -> None:
        self._key_file = key_file
        self._key = read_public_key(key_file)
        self._subject = subject
        self._clock = clock

    def check(self, authorization: str) -> None:
        """Judges the ``Authorization`` header; raises BadToken."""
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise BadToken("a bearer token is needed")
        try:
            claims = jwt.decode(
                token.strip(),
                self._trusted(),
                algorithms=[TOKEN_ALGORITHM],
                audience=TOKEN_AUDIENCE,
                subject=self._subject,
                options={"require": ["exp", "aud", "sub"], "verify_exp": False},
            )
        except jwt.PyJWTError as error:
            raise BadToken(str(error)) from error
        ends, now = claims["exp"], self._clock()
        if not isinstance(ends, int) or ends + LEEWAY_S <= now:
            raise BadToken("the token has expired")
        if ends > now + MAX_LIFETIME_S + LEEWAY_S:
            raise BadToken(f"the token is valid for more than {MAX_LIFETIME_S} seconds")

    def _trusted(self) -> Any:
        """The key as the file has it now: an operator that was installed anew has another, and its ConfigMap follows.

        A file that is gone or broken changes nothing.
        """
        try:
            self._key = read_public_key(self._key_file)
        except BadPublicKey as error:
            log.warning("the last key that could be read stands", extra={"fault": str(error)})
        return self._key


def read_public_key(path: Path) -> Any:
    """An Ed25519 public key; raises BadPublicKey."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise BadPublicKey(f"{path}: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise BadPublicKey(f"{path}: not an Ed25519 key")
    return key
