"""What records look like on the wire: the Avro schemas, where they come from, and how they are named there.

Both rooms at the border use it, intake to read and outbox to write; it knows neither, and holds no event itself.
"""
