"""Makes the frozen examples of format 2: `python -m tests.format2.make_vectors DIRECTORY`.

Run once for each version of the format; the files in `tests/vectors` are never made again.
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

from cln_backup.backends.dir import store as dir_store
from cln_backup.operations.keyring import add_key, secret_from
from tests.format2.small import KINDS, make_every_kind_of_file, url_of
from tests.format2.test_hsm_secret import MNEMONIC
from tests.histories import told_by


def main() -> None:
    dir_store.FIRST_SEGMENT_BYTES = 2048  # type: ignore[misc]
    for kind in KINDS:
        place = Path(sys.argv[1]) / f"format2-{kind}"
        place.mkdir()
        url = url_of(kind, place)
        make_every_kind_of_file(url)
        if kind == "encrypted":
            (place / "passphrase").write_text("correct horse battery staple\n")
            (place / "hsm_secret").write_bytes(MNEMONIC)
            for name in ("passphrase-file", "hsm-secret"):
                file = place / name.removesuffix("-file").replace("-", "_")
                add_key(url, secret_from((name, str(file))))
        told = [
            [t.version, t.kind.value, [base64.b64encode(c).decode() for c in t.content]]
            for t in told_by(url)
        ]
        (place / "told.json").write_text(json.dumps(told, indent=1) + "\n")
        (place / "node" / "backup.writer").unlink()


if __name__ == "__main__":
    main()
