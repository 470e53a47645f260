"""The node, seen from outside its own process."""
