"""The words on paper: finds invalid ones (BIP39, in English, as lightningd uses it)."""

from __future__ import annotations

import difflib
from typing import Final

_LENGTHS: Final = (12, 15, 18, 21, 24)
_MOST_GUESSES: Final = 3


def fault_of(words: str) -> str | None:
    """The fault in words that were typed; `None` if they are valid.

    A word that is in the list is not repeated. lightningd refuses the same words
    (common/hsm_secret.c, `validate_mnemonic`).
    """
    from mnemonic import Mnemonic

    bip39 = Mnemonic("english")
    typed = words.lower().split()
    known = frozenset(bip39.wordlist)
    faults = [
        f"word {number} is not in the BIP39 list{_guesses(word, bip39.wordlist)}"
        for number, word in enumerate(typed, 1)
        if word not in known
    ]
    if len(typed) not in _LENGTHS:
        faults.append(f"there are {len(typed)} words, not 12, 15, 18, 21 or 24")
    if faults:
        return "; ".join(faults)
    if not bip39.check(" ".join(typed)):
        return (
            "each word is in the BIP39 list, but their checksum does not match: one of them is "
            "wrong, or they are in the wrong order"
        )
    return None


def _guesses(word: str, known: list[str]) -> str:
    found = difflib.get_close_matches(word, known, _MOST_GUESSES)
    return f" (did you mean {' or '.join(found)}?)" if found else ""
