"""The page: whether a node, or each node of a server, is safe now, and how it was before."""
