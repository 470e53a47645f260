"""The options of lightningd that say when the backup compacts by itself."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from cln_backup.compaction.policy import Limits
from cln_backup.plugin.manifest import (
    COMPACT_OPTION,
    MAX_CHANGES_OPTION,
    MAX_DAYS_OPTION,
    RATIO_OPTION,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Log = Callable[[str, str], None]

_MIN_RATIO = 0.1
_MIN_CHANGES = 100


def limits_of(options: Mapping[str, object], log: Log) -> Limits | None:
    """The policy's settings; `None` if the backup is not to compact by itself.

    An invalid value is told as a warning that names the option, and its default is used.
    """
    wanted = options.get(COMPACT_OPTION, "auto")
    if wanted == "off":
        return None
    if wanted != "auto":
        _refuse(COMPACT_OPTION, wanted, "auto or off", "auto", log)
    default = Limits()
    return Limits(
        _number(options, RATIO_OPTION, _MIN_RATIO, default.ratio, log),
        round(_number(options, MAX_CHANGES_OPTION, _MIN_CHANGES, default.max_changes, log)),
        _number(options, MAX_DAYS_OPTION, 1, default.max_days, log),
    )


def _number(
    options: Mapping[str, object], option: str, least: float, default: float, log: Log
) -> float:
    given = options.get(option, default)
    try:
        number = float(given)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not least <= number < math.inf:
        _refuse(option, given, f"a number of at least {least:g}", f"{default:g}", log)
        return default
    return number


def _refuse(option: str, given: object, allowed: str, default: str, log: Log) -> None:
    log("warn", f"The option {option} is {given!r}; it must be {allowed}. {default} is used.")
