"""The removal breaker (semantics §5), and what the commands of operators remember.

Revision ID: 0002
"""

from pathlib import Path

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None
half = "pre"


def upgrade() -> None:
    script = Path(__file__).with_suffix(".sql").read_text("utf-8")
    # Without parameters the driver leaves the % of format() alone.
    op.get_bind().execution_options(no_parameters=True).exec_driver_sql(script)


def downgrade() -> None:
    op.execute(
        """
        drop table sync_worker.removal_count, sync_worker.removal_hold, sync_worker.hold_release, sync_worker.intervention,
          sync_worker.reconcile_run, sync_worker.dead_letter_replay, sync_worker.worker,
          sync_worker.schema_support;
        drop function sync_worker.stands_as_member;
        alter table sync_worker.membership drop column hold;
        """
    )
