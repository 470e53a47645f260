"""`file:`, one file as the community's plugin writes it."""
