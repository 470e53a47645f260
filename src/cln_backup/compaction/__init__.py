"""A history folded into one snapshot."""
