"""Credentials as client and server compare them: hashes of tokens and of certificates."""

from __future__ import annotations

import hashlib


def token_hash(token: str) -> str:
    """The hash that a server stores; it does not reveal the token, which is long and random."""
    return hashlib.sha256(token.encode()).hexdigest()


def fingerprint_of(certificate: bytes) -> str:
    """The fingerprint of a certificate in DER form, for a client to pin."""
    return hashlib.sha256(certificate).hexdigest()
