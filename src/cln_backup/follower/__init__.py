"""The follower: a process beside a backup's writer that replays it, and so proves it."""
