"""Replays changes into a SQLite database."""
