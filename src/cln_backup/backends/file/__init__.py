"""`file:`, one file in the format of the community's plugin."""
