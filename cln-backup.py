#!/usr/bin/env python3
"""The plugin's entry for lightningd's tool `reckless`, which installs requirements.txt beside it.

`reckless` cannot load it as important, and it cannot be loaded into a running node: see
docs/tasks/reckless.md.
"""

from cln_backup.plugin.worker import main

if __name__ == "__main__":
    main()
