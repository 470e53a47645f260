"""Bytes to changes and back, one module a format; no input or output."""
