"""The first schema: facts, enrollment rows, outbox, positions and the rule.

Revision ID: 0001
"""

from pathlib import Path

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None
half = "pre"


def upgrade() -> None:
    script = Path(__file__).with_suffix(".sql").read_text("utf-8")
    # Without parameters the driver leaves the % of format() alone.
    op.get_bind().execution_options(no_parameters=True).exec_driver_sql(script)


def downgrade() -> None:
    op.execute("drop schema sync_worker cascade")
