"""The modules that the plugin needs for its start, and those that it must not load."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from cln_backup.backends import create_backend

if TYPE_CHECKING:
    from pathlib import Path

_START = """
import sys
import cln_backup.plugin.worker
from cln_backup.backends import create_backend, open_writer
open_writer(sys.argv[1]).close()
print(sorted({name.partition(".")[0] for name in sys.modules} & {"zstandard", "cryptography"}))
"""


def test_start_on_a_file_loads_no_compression_and_no_encryption(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, None)
    command = [sys.executable, "-c", _START, url]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
