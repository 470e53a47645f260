"""The node's secret in each of its four forms, as lightningd (and libsodium) made them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, place_at
from cln_backup.formats.hsm_secret import NoSecret, needs_passphrase, secret_of, seed_of
from cln_backup.model.errors import Locked
from cln_backup.operations.keyring import add_key, list_keys, secret_from, secret_of_words
from tests.format2.small import url_of
from tests.histories import Told, append, started_node, told

if TYPE_CHECKING:
    from pathlib import Path

    from cln_backup.backends.secrets import Secret

PLAIN = bytes(range(32))
# crypto_secretstream_xchacha20poly1305 of libsodium, of PLAIN, with the passphrase "reckless".
ENCRYPTED = bytes.fromhex(
    "f9ad037ae0de63c07aa38d278533dc48a51bbc886e1d1b878d184aef6ac40a33b8c50933138a68b0"
    "9f97d96b217eb2be2da11754d11fae46e39af4bd5c656b3be4a76ebc47e117095a"
)
WORDS = "abandon " * 11 + "about"
# The first example of BIP39.
SEED_TREZOR = bytes.fromhex(
    "c55257c360c07c72029aebc1b53c05ed0362ada38ead3e3e9efa3708e53495531f09a6987599d182"
    "64c1e1c92f2cf141630c7a3c4ab7c81b2f001698e7463b04"
)
MNEMONIC = bytes(32) + WORDS.encode()
MNEMONIC_WITH_PASSPHRASE = hashlib.sha256(SEED_TREZOR).digest() + WORDS.encode()


def test_each_form_gives_the_secret() -> None:
    assert secret_of(PLAIN) == PLAIN
    assert secret_of(ENCRYPTED, "reckless") == PLAIN
    assert secret_of(MNEMONIC) == seed_of(WORDS)
    assert secret_of(MNEMONIC_WITH_PASSPHRASE, "TREZOR") == SEED_TREZOR


def test_forms_with_a_passphrase_need_the_right_one() -> None:
    assert [needs_passphrase(form) for form in (PLAIN, MNEMONIC)] == [False, False]
    for form in (ENCRYPTED, MNEMONIC_WITH_PASSPHRASE):
        assert needs_passphrase(form)
        with pytest.raises(NoSecret, match="protected"):
            secret_of(form)
        with pytest.raises(NoSecret, match="wrong passphrase"):
            secret_of(form, "another")


@pytest.mark.parametrize("length", [0, 31, 5_000])
def test_what_is_no_hsm_secret_is_refused(length: int) -> None:
    with pytest.raises(NoSecret):
        secret_of(bytes(length))


@pytest.mark.parametrize(
    ("content", "passphrase"),
    [
        (PLAIN, None),
        (ENCRYPTED, "reckless"),
        (MNEMONIC, None),
        (MNEMONIC_WITH_PASSPHRASE, "TREZOR"),
    ],
    ids=["plain", "encrypted", "words", "words-with-passphrase"],
)
def test_each_form_unlocks_a_backup(content: bytes, passphrase: str | None, tmp_path: Path) -> None:
    file = tmp_path / "hsm_secret"
    file.write_bytes(content)
    url = url_of("encrypted", tmp_path)
    create_backend(url, None)
    append(url, started_node())
    add_key(url, secret_from(("hsm-secret", str(file)), passphrase))
    assert [key.kind for key in list_keys(url)] == ["hsm-secret", "key-file"]
    secret = secret_from(("hsm-secret", str(file)), passphrase)
    assert _told_to(secret, f"dir://{tmp_path}/node") == told(started_node())


def _told_to(secret: Secret, url: str) -> list[Told]:
    with place_at(url).open_reader(secret=secret) as reader:
        return told(reader.stream_changes())


def test_words_on_paper_unlock_a_backup(tmp_path: Path) -> None:
    (tmp_path / "hsm_secret").write_bytes(MNEMONIC)
    url = f"dir://{tmp_path}/node?hsm-secret={tmp_path}/hsm_secret"
    create_backend(url, None)
    append(url, started_node())
    for words in ("  " + WORDS.replace(" ", "\n "), WORDS.upper(), WORDS.title()):
        found = _told_to(secret_of_words(words), f"dir://{tmp_path}/node")
        assert found == told(started_node())


def test_passphrase_that_is_no_utf8_is_wrong_and_no_crash() -> None:
    for form in (ENCRYPTED, MNEMONIC_WITH_PASSPHRASE):
        with pytest.raises(NoSecret, match="wrong passphrase"):
            secret_of(form, "\udce9")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("abandon " * 6 + "abandom " + "abandon " * 4 + "about", r"word 7 .*did you mean abandon"),
        ("abandon " * 11 + "aboot", r"word 12 is not .*did you mean .*about"),
        ("abandon " * 10 + "zzzzzz qqqqqq", r"word 11 is not in the BIP39 list; word 12 is not"),
        ("abandon " * 11 + "abandon", "their checksum does not match"),
        ("about " + "abandon " * 11, "their checksum does not match"),
        ("abandon " * 10 + "about", "there are 11 words"),
        ("", "there are 0 words"),
    ],
)
def test_words_that_cannot_be_right_are_refused_with_the_one_that_is_wrong(
    words: str, said: str
) -> None:
    with pytest.raises(Locked, match=said) as refused:
        secret_of_words(words)
    assert "abandon abandon" not in str(refused.value)


def test_words_are_looked_at_as_they_are_typed() -> None:
    assert secret_of_words(f"  {WORDS.upper()}\n").content == seed_of(WORDS)
