"""A backup of a Core Lightning node that is never behind, not by one transaction."""

__version__ = "0.2.0"
