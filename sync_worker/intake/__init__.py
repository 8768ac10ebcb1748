"""Kafka to facts: reads records, tells what they say or why they can never be applied, and gathers them into batches.

Knows nothing of the database but the positions it is handed, and nothing of what an event does.
"""
