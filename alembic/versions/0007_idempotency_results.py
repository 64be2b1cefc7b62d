"""Remembers the result of a request with an Idempotency-Key, and not the HTTP answer that was made of it.

What is stored stays valid: the answer of a single reading is its result, and that of many has all that their result
has. The status follows from the result and from the request.
"""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

RENAME = "ALTER TABLE idempotency_keys RENAME COLUMN answer TO result"
DROP_STATUS = "ALTER TABLE idempotency_keys DROP COLUMN status"

# A request that was rejected in part is answered 422 again, also where it asked for 200 by partial=ok. One that asked
# for 202 is answered 201 with "stored": its result does not tell. A hint at backfill is lost.
ADD_STATUS = "ALTER TABLE idempotency_keys ADD COLUMN status smallint NOT NULL DEFAULT 201"
FILL_STATUS = """
UPDATE idempotency_keys SET status = CASE WHEN position('"rejected":'::bytea IN result) > 0 THEN 422 ELSE 202 END
WHERE expires AND (position('"rejected":'::bytea IN result) > 0 OR position('{"accepted":'::bytea IN result) = 1)
"""
NO_DEFAULT = "ALTER TABLE idempotency_keys ALTER COLUMN status DROP DEFAULT"
RENAME_BACK = "ALTER TABLE idempotency_keys RENAME COLUMN result TO answer"


def upgrade() -> None:
    op.execute(RENAME)
    op.execute(DROP_STATUS)


def downgrade() -> None:
    op.execute(ADD_STATUS)
    op.execute(FILL_STATUS)
    op.execute(NO_DEFAULT)
    op.execute(RENAME_BACK)
