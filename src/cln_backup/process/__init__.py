"""Child processes: run a part of the work in a second process of this program."""
