"""The recorded day of a router, with everything going wrong: `make demo`."""
