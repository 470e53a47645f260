"""What the plugin registers with lightningd."""

from __future__ import annotations

OPTION = "backup-destination"
SCRATCH_OPTION = "backup-scratch-dir"
MANIFEST = {
    "dynamic": False,
    "nonnumericids": True,
    "options": [
        {
            "name": OPTION,
            "type": "string",
            "default": "",  # so that listconfigs shows it, and with it how we were loaded
            "description": "UNUSED. The destination is what backup.lock in the network directory "
            "says.",
        },
        {
            "name": SCRATCH_OPTION,
            "type": "string",
            "description": "Where a compaction builds its database. By default beside the backup; "
            "of an encrypted one, in the network directory.",
        },
    ],
    "rpcmethods": [
        {
            "name": "backup-status",
            "usage": "",
            "description": "Where the backup stands, and how long the node waits for it.",
        },
        {
            "name": "backup-compact",
            "usage": "[force]",
            "description": "Fold the backup's history into one snapshot; the node goes on.",
        },
    ],
    "subscriptions": ["shutdown"],
    "hooks": [{"name": "db_write"}],
}
