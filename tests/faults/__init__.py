"""The fault harness: seeded traffic, a nemesis that breaks what it can, and checkers that believe nobody (docs/reliability.md).

`python -m tests.faults` runs it. Checkers must never import the worker's code: they read topics by fastavro and tables by
psycopg, and compare them with the sequential model of tests/model.
"""
