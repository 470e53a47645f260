"""The location of this program."""

from __future__ import annotations

import os
import sys
import sysconfig

_PLUGIN = "cln-backup"


def plugin_path() -> str:
    """The path, for lightningd's configuration, of the plugin installed with this program.

    Links in it are resolved, so that it stays valid when a link is changed.
    """
    beside = os.path.dirname(os.path.realpath(sys.argv[0]))
    places = (beside, os.path.dirname(sys.executable), sysconfig.get_path("scripts"))
    paths = [os.path.join(place, _PLUGIN) for place in places]
    return os.path.realpath(next(filter(os.path.isfile, paths), paths[0]))
