"""A directory for PYTHONPATH: what runs beside a node keeps the priority of its node.

At the lowest one, a machine that is busy with other tests would not run it for minutes.
"""
