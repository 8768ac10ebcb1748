"""Where an id is still to be found: every table of the schema, read as text, whatever the columns are called."""

from __future__ import annotations

from uuid import UUID

from tests.support.kafka import KafkaRecord
from tests.support.site import Site


def tables_naming(site: Site, user: str) -> dict[str, int]:
    """Rows of each table, those of the migrations too, that hold the id: as text, or within bytes as text or as 16 bytes."""
    forms = [user, user.encode().hex(), UUID(user).bytes.hex()]
    found = {}
    with site.connect() as connection:
        tables = connection.execute("select tablename from pg_tables where schemaname = 'sync_worker'").fetchall()
        assert len(tables) > 10
        for table in (row["tablename"] for row in tables):
            row = connection.execute(
                f"select count(*) as n from {table} t where exists (select from unnest(%s::text[]) f where position(f in t::text) > 0)",
                (forms,),
            ).fetchone()
            if row is not None and row["n"]:
                found[table] = row["n"]
    return found


def state_of_a_consumer(records: list[KafkaRecord]) -> dict[bytes, bytes]:
    """What a consumer holds that keeps the last value of each key and forgets a key at its tombstone."""
    state: dict[bytes, bytes] = {}
    for record in records:
        assert record.key is not None
        if record.value is None:
            state.pop(record.key, None)
        else:
            state[record.key] = record.value
    return state
