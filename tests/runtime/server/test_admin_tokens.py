"""Who gets into the administration port."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from readapt_api.serving import TOKEN_AUDIENCE
from readapt_runtime.server.admin_tokens import BadPublicKey, BadToken, TokenCheck, read_public_key

KEY = Ed25519PrivateKey.generate()
NOW = time.time()


def _token(key: Any = KEY, algorithm: str = "EdDSA", **changes: object) -> str:
    claims = {"aud": TOKEN_AUDIENCE, "sub": "team-a/smollm2", "exp": int(NOW) + 300, **changes}
    return jwt.encode({k: v for k, v in claims.items() if v is not None}, key, algorithm)


def _pem(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key.pem"
    path.write_bytes(_pem(KEY))
    return path


@pytest.fixture
def check(key_file: Path) -> TokenCheck:
    return TokenCheck(key_file, "team-a/smollm2", clock=lambda: NOW)


def test_a_token_of_the_operator_is_let_in(check: TokenCheck) -> None:
    check.check(f"Bearer {_token()}")
    check.check(f"bearer {_token(exp=int(NOW) + 600)}")


REFUSED = {
    "nothing": "",
    "no bearer": f"Basic {_token()}",
    "no token": "Bearer ",
    "garbage": "Bearer a.b.c",
    "another key": f"Bearer {_token(Ed25519PrivateKey.generate())}",
    "another audience": f"Bearer {_token(aud='somebody')}",
    "no audience": f"Bearer {_token(aud=None)}",
    "another base": f"Bearer {_token(sub='team-a/llama')}",
    "the base of that name in another namespace": f"Bearer {_token(sub='team-b/smollm2')}",
    "no subject": f"Bearer {_token(sub=None)}",
    "expired": f"Bearer {_token(exp=int(NOW) - 60)}",
    "no end": f"Bearer {_token(exp=None)}",
    "too long-lived": f"Bearer {_token(exp=int(NOW) + 3600)}",
    "another algorithm": f"Bearer {_token('k' * 32, 'HS256')}",
    "unsigned": f"Bearer {_token(None, 'none')}",
}


@pytest.mark.parametrize("authorization", REFUSED.values(), ids=REFUSED.keys())
def test_everything_else_is_refused(check: TokenCheck, authorization: str) -> None:
    with pytest.raises(BadToken):
        check.check(authorization)


def test_another_key_in_the_file_is_the_one_that_counts(check: TokenCheck, key_file: Path) -> None:
    new = Ed25519PrivateKey.generate()
    key_file.write_bytes(_pem(new))
    check.check(f"Bearer {_token(new)}")
    with pytest.raises(BadToken):
        check.check(f"Bearer {_token(KEY)}")


def test_a_file_that_is_gone_or_broken_changes_nothing(check: TokenCheck, key_file: Path) -> None:
    key_file.write_bytes(b"half a k")
    check.check(f"Bearer {_token()}")
    key_file.unlink()
    check.check(f"Bearer {_token()}")
    with pytest.raises(BadToken):
        check.check(f"Bearer {_token(Ed25519PrivateKey.generate())}")


def test_a_file_that_is_no_ed25519_public_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    for content in (
        b"",
        generate_private_key(65537, 2048).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    ):
        path.write_bytes(content)
        with pytest.raises(BadPublicKey):
            read_public_key(path)
    with pytest.raises(BadPublicKey):
        read_public_key(tmp_path / "missing.pem")
