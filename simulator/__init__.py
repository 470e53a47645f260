"""A simulated Core Lightning node: a real process with a real database that drives a real plugin.

The steps of lightningd around the `db_write` hook are done here in the same order and with the same
bytes on the pipes, without bitcoind, peers or keys. The calls come from a recording of a real node
or from a generator; the node can be told to die at any point of any of them.

`python -m simulator --help` runs it. From Python: `simulator.calls` reads recordings,
`simulator.load` generates calls, `simulator.build` makes the database a node would have,
`simulator.content` compares two databases, `simulator.client` talks to a running node.
"""
