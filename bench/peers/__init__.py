"""What a team would otherwise use, small and fair, each a process of its own.

`python -m bench.peers.NAME SERVERS TOPIC GROUP DATABASE_URL`.
They run in an environment of their own (requirements/bench.txt) and know nothing of the worker.
"""
