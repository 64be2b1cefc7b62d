"""Limits expected intervals to ten years, as the API does.

An interval of a trillion seconds put the moment before which a sensor is offline beyond PostgreSQL's calendar, so that
every query of ``sensor_status`` that met the sensor failed.
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
    # The other way round the lock of ADD would be held while the rows are looked for: the flush waits for it.
    op.execute(SHORTEN)
    op.execute(ADD)


def downgrade() -> None:
    op.execute(DROP)
