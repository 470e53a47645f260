"""The plugin's options, commands and hooks, as registered with lightningd."""

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
            "default": "",  # so that listconfigs shows it, and how the plugin was loaded
            "description": "UNUSED. backup.lock in the network directory names the destination.",
        },
        {
            "name": SCRATCH_OPTION,
            "type": "string",
            "description": "Directory where a compaction builds its database. By default beside "
            "the backup; for an encrypted one, in the network directory.",
        },
    ],
    "rpcmethods": [
        {
            "name": "backup-status",
            "usage": "",
            "description": "Show the state of the backup, and how long the node waits for it.",
        },
        {
            "name": "backup-compact",
            "usage": "[force]",
            "description": "Fold the backup's history into one snapshot while the node runs.",
        },
    ],
    "subscriptions": ["shutdown"],
    "hooks": [{"name": "db_write"}],
}
