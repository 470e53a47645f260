"""Encodes and decodes changes, one module a format; no input or output."""
