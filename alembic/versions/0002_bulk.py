"""Add the claims of Idempotency-Keys, and the columnstore of ``readings`` where the edition has one."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

CLAIMS = """
-- A row is written in the transaction of its readings, and holds the answer that their sender got.
CREATE TABLE idempotency_keys (
    key_name text NOT NULL,
    key text NOT NULL,
    content_hash bytea NOT NULL,
    status smallint NOT NULL,
    answer bytea NOT NULL,
    expires boolean NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (key_name, key)
);
CREATE INDEX idempotency_keys_created_at ON idempotency_keys (created_at) WHERE expires;
"""
DROP_CLAIMS = "DROP TABLE idempotency_keys"

# A query for one sensor finds its rows together, newest first.
COLUMNSTORE = """
ALTER TABLE readings SET (
    timescaledb.compress, timescaledb.compress_segmentby = 'sensor_id', timescaledb.compress_orderby = 'time DESC'
)
"""
DROP_COLUMNSTORE = """
SELECT decompress_chunk(chunk, if_compressed => true) FROM show_chunks('readings') AS chunk;
ALTER TABLE readings SET (timescaledb.compress = false);
"""


def upgrade() -> None:
    op.execute(CLAIMS)
    if op.get_context().opts["is_community"]():
        op.execute(COLUMNSTORE)


def downgrade() -> None:
    if op.get_context().opts["is_community"]():
        op.execute(DROP_COLUMNSTORE)
    op.execute(DROP_CLAIMS)
