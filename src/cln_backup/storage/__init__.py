"""Files on this machine's disks: the only code that writes, syncs, renames or removes them."""
