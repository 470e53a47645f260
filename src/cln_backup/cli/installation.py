"""Where this program is installed."""

from __future__ import annotations

import os
import sys
import sysconfig

_PLUGIN = "cln-backup"


def plugin_path() -> str:
    """The plugin's path as lightningd's configuration has to name it: the one installed with this.

    No link is left in it, so that it holds when a link is made anew.
    """
    beside = os.path.dirname(os.path.realpath(sys.argv[0]))
    places = (beside, os.path.dirname(sys.executable), sysconfig.get_path("scripts"))
    paths = [os.path.join(place, _PLUGIN) for place in places]
    return os.path.realpath(next(filter(os.path.isfile, paths), paths[0]))
