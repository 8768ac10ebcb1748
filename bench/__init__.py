"""First figures: the worker end to end beside the ceiling of the bare SQL, in the same run, on a durable native stack.

Every round that counts is checked for completeness and correctness. It must never report a figure of a wrong run.
"""
