"""PostgreSQL: the schema and its migrations, sessions, and named statements. It knows tables, never what an event means."""
