"""Keys, tokens and kubeconfig files of one throw-away control plane. Everything secret is written with mode 0600."""

from __future__ import annotations

import base64
import os
import secrets
from pathlib import Path

import yaml

ADMIN = "admin"
CONTROLLER_MANAGER = "system:kube-controller-manager"

_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_P256_OID = bytes.fromhex("06082a8648ce3d030107")


def write_private(path: Path, text: str) -> None:
    """Writes a file that only we can read, from its first byte on."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def signing_key() -> str:
    """A new P-256 private key in PEM, for ServiceAccount tokens.

    RFC 5915 makes the public half optional, so that a random number below the curve's order is all it takes, and
    neither openssl nor a Python package is needed.
    """
    scalar = (secrets.randbelow(_P256_ORDER - 1) + 1).to_bytes(32, "big")
    body = b"\x02\x01\x01" + b"\x04\x20" + scalar + b"\xa0" + bytes([len(_P256_OID)]) + _P256_OID
    encoded = base64.encodebytes(b"\x30" + bytes([len(body)]) + body).decode()
    return f"-----BEGIN EC PRIVATE KEY-----\n{encoded}-----END EC PRIVATE KEY-----\n"


def token_file(admin_token: str, controller_manager_token: str) -> str:
    """The static token file of kube-apiserver: token, user, uid, groups."""
    return f'{admin_token},{ADMIN},1,"system:masters"\n{controller_manager_token},{CONTROLLER_MANAGER},2\n'


def kubeconfig(*, server: str, authority: Path, user: str, token: str) -> str:
    """A kubeconfig with one cluster, one user and one context; self-contained, so that it can be copied."""
    authority_data = base64.b64encode(authority.read_bytes()).decode()
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": server, "certificate-authority-data": authority_data}}],
        "users": [{"name": user, "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
        "current-context": "test",
    }
    return yaml.safe_dump(document, sort_keys=False)
