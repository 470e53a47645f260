"""A Core Lightning backup that is always up to date, to the last transaction."""

__version__ = "0.2.0"
