"""The node's `hsm_secret`, in each form that lightningd stores it in (common/hsm_secret.c).

=========  ====================================  ==================================
bytes      form                                  secret
=========  ====================================  ==================================
32         plain                                 these bytes
73         encrypted with a passphrase           32 bytes
33 to …    32 zeros, then BIP39 words            the 64 bytes of the words' seed
33 to …    SHA-256 of the seed, then words       the seed of words and passphrase
=========  ====================================  ==================================
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final

PLAIN_BYTES: Final = 32
ENCRYPTED_BYTES: Final = 73
MAX_BYTES: Final = 4096
_SALT: Final = b"c-lightning\x00\x00\x00\x00\x00"
_HEADER_BYTES: Final = 24
_WORD = 0xFFFF_FFFF
_CURVE_ORDER: Final = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141


class NoSecret(Exception):
    """The file cannot be used; the text says why, and contains nothing secret."""


class NeedsPassphrase(NoSecret):
    """The file needs a passphrase, and none was given."""


def needs_passphrase(content: bytes) -> bool:
    """Whether the secret needs a passphrase."""
    if len(content) == ENCRYPTED_BYTES:
        return True
    return len(content) > PLAIN_BYTES and any(content[:PLAIN_BYTES])


def secret_of(content: bytes, passphrase: str | None = None) -> bytes:
    """The secret in an `hsm_secret` file: 32 bytes, or the 64 of a seed.

    Raises:
        NoSecret: the file is not an `hsm_secret`, or the passphrase is missing or wrong.
    """
    if len(content) < PLAIN_BYTES or len(content) > MAX_BYTES:
        raise NoSecret(f"it is not an hsm_secret: it has {len(content)} bytes")
    if len(content) == PLAIN_BYTES:
        return content
    if needs_passphrase(content) and passphrase is None:
        raise NeedsPassphrase("it is protected by a passphrase")
    if len(content) == ENCRYPTED_BYTES:
        return _decrypted(content, passphrase or "")
    words = content[PLAIN_BYTES:].split(b"\x00")[0]
    if not any(content[:PLAIN_BYTES]):
        return seed_of(words.decode("utf-8", "replace"))
    seed = seed_of(words.decode("utf-8", "replace"), passphrase or "")
    if hashlib.sha256(seed).digest() != content[:PLAIN_BYTES]:
        raise NoSecret("wrong passphrase")
    return seed


def seed_of(words: str, passphrase: str = "") -> bytes:
    """The BIP39 seed of the words.

    The passphrase is used as it was typed, since lightningd does not normalize it.
    """
    normal = " ".join(words.split())
    salt = b"mnemonic" + passphrase.encode("utf-8", "surrogateescape")
    return hashlib.pbkdf2_hmac("sha512", normal.encode(), salt, 2048)


def file_of_words(words: str, passphrase: str = "") -> bytes:
    """The `hsm_secret` file that lightningd makes of valid words, in lower case."""
    normal = " ".join(words.lower().split())
    check = bytes(PLAIN_BYTES)
    if passphrase:
        check = hashlib.sha256(seed_of(normal, passphrase)).digest()
    return check + normal.encode()


def is_file_of(content: bytes, secret: bytes) -> bool | None:
    """Whether a file contains this secret; `None` if only its passphrase could tell."""
    if len(content) == ENCRYPTED_BYTES:
        return None
    if needs_passphrase(content):
        return hashlib.sha256(secret).digest() == content[:PLAIN_BYTES]
    return secret_of(content) == secret


def node_id_of(secret: bytes) -> str:
    """The id of the node with this secret (hsmd/libhsmd.c, `node_key`).

    Of a seed of words, the first 32 bytes count.
    """
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256K1, derive_private_key
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    salt = 0
    while True:
        # lightningd's salt is a number of the machine, which is little-endian wherever it runs.
        derived = HKDF(SHA256(), 32, salt.to_bytes(4, "little"), b"nodeid").derive(secret[:32])
        number = int.from_bytes(derived, "big")
        if 0 < number < _CURVE_ORDER:
            break
        salt += 1
    public = derive_private_key(number, SECP256K1()).public_key()
    return public.public_bytes(Encoding.X962, PublicFormat.CompressedPoint).hex()


def _decrypted(content: bytes, passphrase: str) -> bytes:
    """Decrypts one message of libsodium's `crypto_secretstream_xchacha20poly1305`."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
    from cryptography.hazmat.primitives.poly1305 import Poly1305

    key = Argon2id(salt=_SALT, length=32, iterations=3, lanes=1, memory_cost=1 << 18).derive(
        passphrase.encode("utf-8", "surrogateescape")
    )
    header, sealed = content[:_HEADER_BYTES], content[_HEADER_BYTES:]
    key = _hchacha20(key, header[:16])
    nonce = (1).to_bytes(4, "little") + header[16:]
    tag_byte, text, mac = sealed[:1], sealed[1:33], sealed[33:]
    # The type of the message is at the start of a block of its own.
    block = _chacha20(key, nonce, 1, tag_byte.ljust(64, b"\x00"))
    authenticator = Poly1305(_chacha20(key, nonce, 0, bytes(32)))
    authenticator.update(tag_byte + block[1:])
    authenticator.update(text)
    authenticator.update(struct.pack("<QQ", 0, 64 + len(text)))
    try:
        authenticator.verify(mac)
    except InvalidSignature:
        raise NoSecret("wrong passphrase") from None
    return _chacha20(key, nonce, 2, text)


def _chacha20(key: bytes, nonce: bytes, counter: int, data: bytes) -> bytes:
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

    full_nonce = counter.to_bytes(4, "little") + nonce
    return Cipher(ChaCha20(key, full_nonce), mode=None).encryptor().update(data)


def _hchacha20(key: bytes, nonce: bytes) -> bytes:
    """A key from a key and 16 bytes: a block of ChaCha20, without the addition at its end."""
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

    stream = Cipher(ChaCha20(key, nonce), mode=None).encryptor().update(bytes(64))
    start = b"expand 32-byte k" + key + nonce
    pairs = zip(struct.unpack("<16I", stream), struct.unpack("<16I", start), strict=True)
    words = [(added - before) & _WORD for added, before in pairs]
    return struct.pack("<8I", *words[:4], *words[12:])
