"""What a worker's process loads (ADR 11), and that what is read without Alembic is what Alembic would say."""

import subprocess
import sys

from alembic.config import Config
from alembic.script import ScriptDirectory

from sync_worker.database import halves

# Forty megabytes and half of the start, for nothing that a worker does.
UNUSED = {"sqlalchemy", "alembic", "mako", "confluent_kafka.schema_registry", "authlib", "httpx", "opentelemetry"}


def test_a_worker_loads_nothing_that_it_does_not_use() -> None:
    program = "import sys, sync_worker.cli.worker, sync_worker.worker; print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    loaded = set(done.stdout.split())
    assert "psycopg" in loaded
    assert not loaded & UNUSED


def test_the_revisions_are_those_that_alembic_finds_in_its_order() -> None:
    configuration = Config()
    configuration.set_main_option("script_location", str(halves.MIGRATIONS))
    scripts = reversed(list(ScriptDirectory.from_config(configuration).walk_revisions()))
    assert [(script.revision, script.module.half) for script in scripts] == [
        (revision.name, revision.half) for revision in halves.revisions()
    ]
