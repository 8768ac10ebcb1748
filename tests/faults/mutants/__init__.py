"""Workers that are wrong on purpose, one sentence of the design left out in each, to see that the checkers notice.

Each is the worker itself with one thing patched when its process starts. None of it may be reachable from sync_worker.
"""
