"""An Importer with a pipeline that accepts everything."""

import asyncio
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from app.imports.importer import Importer, ImportResult
from app.imports.layout import ColumnMapping
from app.ingest.batch import Batch, Reading
from app.ingest.decode.timestamps import TimeWindow
from app.ingest.idempotency import StoredResult
from app.ingest.pipeline import Pipeline
from app.ingest.request import WriteRequest
from app.ingest.result import BatchResult, WriteOutcome
from app.ingest.service import StoredRecords, WriteService
from app.store.imports import ImportRecords
from tests.support.samples import T0_US


class Taken:
    """A pipeline that stores at once, and keeps the records."""

    def __init__(self) -> None:
        self.kept: dict[str, StoredResult] = {}
        self.readings: list[Reading] = []

    async def find(self, keys: Collection[str]) -> Mapping[str, StoredResult]:
        return {key: self.kept[key] for key in keys if key in self.kept}

    async def has_any(self, prefix: str) -> bool:
        return any(key.startswith(prefix) for key in self.kept)

    async def forget(self, keys: Collection[str], prefix: str | None) -> None:
        gone = [key for key in self.kept if key in keys or (prefix is not None and key.startswith(prefix))]
        for key in gone:
            del self.kept[key]

    def submit(
        self,
        request: WriteRequest,
        on_result: Callable[[WriteOutcome], None],
    ) -> None:
        content, record = request.content, request.record
        assert record is not None
        assert record.result is not None
        assert not request.is_awaited
        assert isinstance(content, Batch)
        _, key, content_hash = record.identity
        self.kept[key] = StoredResult(content_hash, record.result, datetime(2023, 7, 12, tzinfo=UTC))
        self.readings += content.readings(0, content.rows)
        on_result(BatchResult(content.rows))


def importer(layout: ColumnMapping, taken: Taken | None) -> Importer:
    return Importer(
        service=None if taken is None else WriteService(cast("Pipeline[Any]", taken), cast("StoredRecords", taken)),
        log=cast("ImportRecords | None", taken),
        layout=layout,
        window=TimeWindow.of(past_days=0, future_minutes=0, kept_days=0),
        now_us=lambda: T0_US,
    )


def imported(path: Path, layout: ColumnMapping, taken: Taken | None = None) -> ImportResult:
    """Import a file in real time, since it is read in threads."""
    return asyncio.run(importer(layout, taken).run(path, lambda _part, _outcome: None))
