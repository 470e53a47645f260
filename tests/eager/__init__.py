"""A directory for PYTHONPATH: no process that the tests start gives way to all others.

At the lowest priority, a machine that is busy with other tests would not run it for minutes.
"""
