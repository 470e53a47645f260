"""What a backup costs, measured against a floor in the same run: `make bench`."""
