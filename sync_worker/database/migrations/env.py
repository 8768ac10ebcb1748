"""Alembic's entry: runs the revisions on the connection that `database.migrate` hands over, in one transaction."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    version_table_schema="sync_worker",
    target_metadata=context.config.attributes.get("metadata"),
    transaction_per_migration=False,
)
with context.begin_transaction():
    context.run_migrations()
