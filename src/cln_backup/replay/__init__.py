"""Changes into a SQLite database."""
