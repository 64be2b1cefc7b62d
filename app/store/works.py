"""The kinds of work that the maintenance does for a database, as its edition needs them."""

from collections.abc import Sequence

from app.store.aggregates import Aggregates
from app.store.chunks import Chunks
from app.store.columnstore import Columnstore
from app.store.database import Database, Edition
from app.store.maintenance import Work
from app.store.pruning import PRUNE_PAUSE_S, Pruning
from app.store.retention import Retention

CHECK_REST = 20.0
"""What looks for work that may not be there rests for so many times its duration: it takes a twentieth of a core."""


def maintenance_works(
    database: Database, edition: Edition, *, retention: Retention, pruning: Pruning, chunks: Chunks
) -> Sequence[Work]:
    """Return what the elected process does for a database, as its edition needs it."""
    works = [
        Work("retention", 3_600, lambda connection, _: retention.delete_old(connection, edition)),
        Work("pruning", 15, lambda connection, _: pruning.prune_rows(connection), first_after_s=PRUNE_PAUSE_S),
        Work("senders", 86_400, lambda connection, _: pruning.prune_senders(connection), first_after_s=PRUNE_PAUSE_S),
    ]
    if edition.kind == "community":
        works += [
            Work("chunks", 60, lambda connection, _: chunks.make_ahead(connection)),
            Work("merging", 3_600, lambda connection, _: chunks.merge(connection), can_wait=True),
        ]
    if not edition.has_aggregates:
        return works
    aggregates, columnstore = Aggregates(database), Columnstore()
    refresh = Work("refresh", 5, aggregates.refresh, awaits_first=True)  # it waits for the next minute by itself
    late = Work("late", 5, aggregates.refresh_late, can_wait=True, awaits_first=True)
    if not edition.continuous_aggregates:
        return [refresh, late, *works]
    return [
        # Days without aggregates are refreshed before a refresh of later days could hide them from queries.
        Work("check", 600, aggregates.check_days, can_wait=True, rest=CHECK_REST, is_awaited=True),
        refresh,
        late,
        Work("changes", 300, aggregates.refresh_changed, can_wait=True, rest=CHECK_REST, awaits_first=True),
        Work("columnstore", 15, columnstore.convert),
        *works,
    ]
