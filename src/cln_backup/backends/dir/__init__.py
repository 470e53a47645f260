"""`dir:`, a directory of sealed records."""
