"""`socket:`, a backup on a server."""
