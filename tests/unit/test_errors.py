from __future__ import annotations

import inspect
import re

from cln_backup.model import errors
from cln_backup.model.errors import BackupError


def _all() -> list[type[BackupError]]:
    found = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
    return [kind for kind in found if issubclass(kind, BackupError)]


def test_every_error_has_an_exit_code_of_its_own() -> None:
    codes = [kind.exit_code for kind in _all()]
    assert len(set(codes)) == len(codes)
    assert 0 not in codes
    assert 2 not in codes, "2 is a wrong command line"


def test_the_tree_at_the_top_of_the_module_is_true() -> None:
    assert errors.__doc__ is not None
    drawn = dict(re.findall(r"(\w+) +(\d+)(?: |$)", errors.__doc__, re.MULTILINE))
    del drawn["Code"]  # the sentence about 2, the code of a wrong command line
    assert {name: int(code) for name, code in drawn.items()} == {
        kind.__name__: kind.exit_code for kind in _all()
    }
