"""Files through the importer into an intake that takes all, and without one."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from app.imports.files import Layout
from app.imports.importer import Importer, Outcome
from app.ingest.batch import Content
from app.ingest.buffer import Answer
from app.ingest.claim import Claim
from app.ingest.decode.timestamps import Precision, TimeWindow
from app.ingest.receipt import Stored
from tests.unit.samples import T0_US


class Taken:
    """An intake that stores at once, and keeps the claims."""

    def __init__(self) -> None:
        self.claims: list[str] = []

    def reserve(self, key_name: str, size_bytes: int) -> None:
        """There is room."""

    @contextmanager
    def expect(self) -> Iterator[None]:
        yield

    def submit(
        self,
        content: Content,
        settle: Callable[[Answer], None],
        *,
        claim: Claim | None = None,
        is_awaited: bool = True,
    ) -> None:
        assert claim is not None
        assert not is_awaited
        self.claims.append(claim.fingerprint.key)
        settle(Stored(content.rows, {}))


def imported(path: Path, layout: Layout, intake: Taken | None = None) -> Outcome:
    """What becomes of a file, in real time: it is read in threads."""
    importer = Importer(
        intake=intake,
        layout=layout,
        window=TimeWindow.of(past_days=0, future_minutes=0, kept_days=0),
        now_us=lambda: T0_US,
        on_progress=lambda _part, _outcome: None,
    )
    return asyncio.run(importer.run(path))


def test_a_file_is_found_by_the_claims_that_it_was_stored_with(tmp_path: Path) -> None:
    """Claims never expire: what makes another of it has every file stored again."""
    (tmp_path / "a.csv").write_bytes(b"station,time,temperature\na,1000,212\n")
    layout = Layout({"sensor_id": "station"}, frozenset(["temperature"]), Precision.MS)
    intake = Taken()
    assert imported(tmp_path / "a.csv", layout, intake).stored == 1
    assert intake.claims == ["c16be58e0a83a77db2fa4078a0c3d34f6d286c437b8a84b98b3fefa7bafa544d:0:0"]
