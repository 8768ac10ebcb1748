"""Rows → events: reads the outbox, encodes it, and publishes it once.

Must never decide what changed: that stands in the outbox row, written in the transaction that made the change.
"""
