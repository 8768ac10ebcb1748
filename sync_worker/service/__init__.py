"""What an operator sees of the worker from outside: logs, metrics, health and the HTTP port that shows them.

Nothing here may change what the worker does, or know Kafka or PostgreSQL.
"""
