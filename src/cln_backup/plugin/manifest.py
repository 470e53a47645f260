"""The plugin's options, commands and hooks, as registered with lightningd."""

from __future__ import annotations

import os

OPTION = "backup-destination"
SCRATCH_OPTION = "backup-scratch-dir"
COMPACT_OPTION = "backup-compact"
RATIO_OPTION = "backup-compact-ratio"
MAX_CHANGES_OPTION = "backup-compact-max-changes"
MAX_DAYS_OPTION = "backup-compact-max-days"
FOLLOWER_OPTION = "backup-follower"
REPLICA_OPTION = "backup-replica-dir"
APPRISE_OPTION = "backup-alarm-apprise"
WEBHOOK_OPTION = "backup-alarm-webhook"
COMMAND_OPTION = "backup-alarm-command"
PING_OPTION = "backup-alarm-ping"
PAGE_OPTION = "backup-page"
PAGE_NAME_OPTION = "backup-page-name"
ALARM_TOPIC = "backup_alarm"

_CONCEALS_SINCE = (24, 11)
"""An earlier lightningd ends a plugin that has an option of the type `string-conceal`."""


def _secret_type(release: str) -> str:
    """The type of an option whose value `listconfigs` should not show."""
    try:
        year, month = map(int, release.removeprefix("v").split(".")[:2])
    except ValueError:
        return "string"
    return "string-conceal" if (year, month) >= _CONCEALS_SINCE else "string"


_SECRET = _secret_type(os.environ.get("LIGHTNINGD_VERSION", ""))
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
            "description": "Directory where a compaction builds its database, if no follower runs. "
            "By default beside the backup; for an encrypted one, in the network directory.",
        },
        {
            "name": COMPACT_OPTION,
            "type": "string",
            "default": "auto",
            "description": "Whether the backup compacts by itself: auto or off.",
        },
        {
            "name": RATIO_OPTION,
            "type": "string",
            "default": "1",
            "description": "Compact when the log is so many times as large as the snapshot.",
        },
        {
            "name": MAX_CHANGES_OPTION,
            "type": "int",
            "default": 500_000,
            "description": "Compact when the log has so many changes, which a restore replays.",
        },
        {
            "name": MAX_DAYS_OPTION,
            "type": "int",
            "default": 30,
            "description": "Compact after so many days, if it frees enough space.",
        },
        {
            "name": FOLLOWER_OPTION,
            "type": "string",
            "default": "on",
            "description": "Whether a process beside the node replays the backup: on or off.",
        },
        {
            "name": REPLICA_OPTION,
            "type": "string",
            "description": "Directory of the follower's replica, which is as large as the "
            "database. By default backup.replica in the network directory.",
        },
        {
            "name": APPRISE_OPTION,
            "type": _SECRET,
            "multi": True,
            "description": "URL of Apprise to send alarms to, or a file with one URL a line.",
        },
        {
            "name": WEBHOOK_OPTION,
            "type": _SECRET,
            "multi": True,
            "description": "URL that gets each alarm as a POST with JSON.",
        },
        {
            "name": COMMAND_OPTION,
            "type": "string",
            "multi": True,
            "description": "Command that gets each alarm as JSON on its standard input.",
        },
        {
            "name": PING_OPTION,
            "type": _SECRET,
            "multi": True,
            "description": "URL that gets a GET each minute while the node is protected.",
        },
        {
            "name": PAGE_OPTION,
            "type": "string",
            "description": "HOST:PORT of a page for a browser that shows whether the node is safe.",
        },
        {
            "name": PAGE_NAME_OPTION,
            "type": "string",
            "multi": True,
            "description": "A name under which the page may be asked for, besides its address.",
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
    "notifications": [{"method": ALARM_TOPIC}],
    "hooks": [{"name": "db_write"}],
}
