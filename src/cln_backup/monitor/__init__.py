"""A process beside a node or a server: says whether the nodes are safe, and tells when not."""
