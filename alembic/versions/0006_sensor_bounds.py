"""Limit expected intervals to ten years, as the API does.

With an interval of a trillion seconds the time before which a sensor is offline lay beyond PostgreSQL's calendar, so
that every query of ``sensor_status`` that read the sensor failed.
"""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

MAX_INTERVAL_S = 315_576_000

# A longer interval means "never offline", and still does. PostgreSQL sorts NaN above all numbers.
SHORTEN = f"UPDATE sensors SET expected_interval_s = {MAX_INTERVAL_S} WHERE expected_interval_s > {MAX_INTERVAL_S}"
ADD = f"""
ALTER TABLE sensors
    ADD CONSTRAINT sensors_expected_interval_s_bound CHECK (expected_interval_s <= {MAX_INTERVAL_S})
"""
DROP = "ALTER TABLE sensors DROP CONSTRAINT sensors_expected_interval_s_bound"


def upgrade() -> None:
    # In the other order ADD's lock would be held while the rows are updated, and flushes would wait for it.
    op.execute(SHORTEN)
    op.execute(ADD)


def downgrade() -> None:
    op.execute(DROP)
