"""The node's id from its secret, as lightningd derives it, and the file that it makes of words."""

from __future__ import annotations

import pytest

from cln_backup.formats.hsm_secret import (
    file_of_words,
    is_file_of,
    node_id_of,
    secret_of,
    seed_of,
)
from tests.format2.test_hsm_secret import ENCRYPTED, MNEMONIC, MNEMONIC_WITH_PASSPHRASE, PLAIN

ABANDON = "abandon " * 11 + "about"

# From lightningd's own tests: tests/test_wallet.py, and the nodes of its test framework, whose
# secret is the name of their directory.
NODES = [
    (
        b"lightning-1".ljust(32, b"\0"),
        "0266e4598d1d3c415f572a8488830b60f7e744ed9235eb0b1ba93283b315c03518",
    ),
    (
        b"lightning-2".ljust(32, b"\0"),
        "022d223620a359a47ff7f7ac447c85c46c923da53389221a0054c11c1e3ca31d59",
    ),
    (seed_of(ABANDON), "03653e90c1ce4660fd8505dd6d643356e93cfe202af109d382787639dd5890e87d"),
    (
        seed_of(
            "ritual idle hat sunny universe pluck key alpha wing cake have wedding",
            "test_passphrase",
        ),
        "039020371fb803cd4ce1e9a909b502d7b0a9e0f10cccc35c3e9be959c52d3ba6bd",
    ),
]


@pytest.mark.parametrize(("secret", "node_id"), NODES)
def test_node_id_is_the_one_that_lightningd_derives(secret: bytes, node_id: str) -> None:
    assert node_id_of(secret) == node_id


def test_file_of_words_is_the_one_that_lightningd_writes() -> None:
    assert file_of_words(f"  {ABANDON.upper()}\n") == MNEMONIC
    assert file_of_words(ABANDON, "TREZOR") == MNEMONIC_WITH_PASSPHRASE
    assert secret_of(file_of_words(ABANDON, "TREZOR"), "TREZOR") == seed_of(ABANDON, "TREZOR")


def test_file_is_compared_with_a_secret_without_its_passphrase() -> None:
    assert is_file_of(PLAIN, PLAIN)
    assert not is_file_of(PLAIN, bytes(32))
    assert is_file_of(MNEMONIC, seed_of(ABANDON))
    assert is_file_of(MNEMONIC_WITH_PASSPHRASE, seed_of(ABANDON, "TREZOR"))
    assert not is_file_of(MNEMONIC_WITH_PASSPHRASE, seed_of(ABANDON))
    assert is_file_of(ENCRYPTED, PLAIN) is None
