"""Measures the cost of a backup against a floor in the same run: `make bench`."""
