"""Backups in a bucket of an object store: one sealed object a change, put if absent."""
