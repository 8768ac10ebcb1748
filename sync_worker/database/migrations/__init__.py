"""The history of the schema, applied by Alembic. A revision that was released is never edited; a new one follows it."""
