"""The idempotency keys by which a file's readings are recognised when it is imported again.

A text is recognised by its beginning: the keys of each block begin with the digest of everything before it, and its
record holds its length. So a log that has grown is recognised as far as it was imported, and continues there; its name
and its compression do not matter. Other files are recognised by the digest of the whole.

The options that decide what is stored are part of both digests. The records never expire.
"""

import asyncio
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from app.errors import ConfigurationError
from app.imports.files import Block, Cut, InputFile
from app.imports.layout import ColumnMapping
from app.store.imports import ImportRecords

CUTS_AT_A_TIME = 8


class KeysOfWhole:
    """The keys of a file that is known by its whole content."""

    def __init__(self, digest: str) -> None:
        self.prefix = f"{digest}:"
        self._rows_before = 0

    async def cuts(self) -> Sequence[Cut]:
        """Return nothing: such a file has no blocks of earlier imports."""
        return ()

    def enter(self, _block: Block, rows_before: int, /) -> None:
        """Begin with the next block."""
        self._rows_before = rows_before

    def key(self, part: int) -> str:
        """Return the key of a part of the block, from 0."""
        return f"{self.prefix}{self._rows_before}:{part}"

    def content_hash(self, rows: int) -> bytes:
        """Return the hash by which a part is known to be the same."""
        return b"%d" % rows

    def result(self, _part: int, _parts: int, /) -> bytes:
        """Return the result that is stored in the record of a part."""
        return b""


class KeysOfBeginning:
    """The keys of a text, each named by the digest of what comes before its block."""

    def __init__(self, log: ImportRecords | None, options: bytes) -> None:
        self._log = log
        self._before = hashlib.sha256(options).digest()
        self._cuts: list[Cut] = []
        self._cut = Cut(0, b"")
        self._name = ""

    async def cuts(self) -> Sequence[Cut]:
        """Return where blocks that began here ended in earlier imports. The record of each first part has it."""
        self._cuts = []
        while self._log is not None:
            numbers = range(len(self._cuts), len(self._cuts) + CUTS_AT_A_TIME)
            keys = [f"{self._before.hex()}:{number}:0" for number in numbers]
            found = await self._log.find(keys)
            for key in keys:
                if key not in found:
                    return self._cuts
                cut = json.loads(found[key].result)
                self._cuts.append(Cut(cut["bytes"], bytes.fromhex(cut["sha256"])))
        return ()

    def enter(self, block: Block, _rows_before: int, /) -> None:
        """Begin with the next block."""
        self._cut = Cut.of(block.content)
        number = self._cuts.index(self._cut) if self._cut in self._cuts else len(self._cuts)
        self._name = f"{self._before.hex()}:{number}"
        self._before = hashlib.sha256(self._before + self._cut.digest).digest()

    def key(self, part: int) -> str:
        """Return the key of a part of the block, from 0."""
        return f"{self._name}:{part}"

    def content_hash(self, rows: int) -> bytes:
        """Return the hash by which a part is known to be the same."""
        return b"%d:%b" % (rows, self._cut.digest)

    def result(self, part: int, parts: int, /) -> bytes:
        """Return the result that is stored in the record of a part: that of the first says how the block was cut."""
        if part:
            return b""
        return json.dumps({"bytes": self._cut.size, "sha256": self._cut.digest.hex(), "parts": parts}).encode()


PartKeys = KeysOfWhole | KeysOfBeginning
"""The keys of one file's parts, block by block."""


async def keys_of(path: Path, file: InputFile, layout: ColumnMapping, log: ImportRecords | None) -> PartKeys:
    """Return the keys of a file's readings, by which they are found again.

    A text that was imported when all files were known by their whole content still is.
    """
    if log is None:
        return KeysOfBeginning(None, b"")
    old_options = repr((sorted(layout.columns.items()), sorted(layout.fahrenheit), layout.precision)).encode()
    whole = KeysOfWhole(await asyncio.to_thread(_digest, path, old_options))
    has_old_options = layout.sensor_name is None and layout.time_format is None
    is_known_whole = not file.grows and layout.time_zone == "UTC"
    if has_old_options and (is_known_whole or await log.has_any(whole.prefix)):
        return whole
    options = _options(layout)
    if not file.grows:
        return KeysOfWhole(await asyncio.to_thread(_digest, path, options))
    return KeysOfBeginning(log, b"%b\n%b%b" % (options, file.dialect.separator.encode(), file.header))


async def forget(path: Path, file: InputFile, layout: ColumnMapping, log: ImportRecords) -> bool:
    """Delete the records of a file, so that it is imported anew, and return whether it had any.

    Raises:
        ConfigurationError: the file can't be read.
        DatabaseUnavailable
    """
    part_keys = await keys_of(path, file, layout, log)
    if isinstance(part_keys, KeysOfWhole):
        if is_known := await log.has_any(part_keys.prefix):
            await log.forget([], part_keys.prefix)
        return is_known
    keys: list[str] = []
    while (block := file.next_block(await part_keys.cuts())) is not None:
        part_keys.enter(block, 0)
        found = await log.find([part_keys.key(0)])
        if first := found.get(part_keys.key(0)):
            keys += [part_keys.key(part) for part in range(json.loads(first.result)["parts"])]
    if keys:
        await log.forget(keys, None)
    return bool(keys)


def _options(layout: ColumnMapping) -> bytes:
    """Return the options that change what a file's readings are. Those that only change how many of its rows are
    rejected are left out: rows that were stored should not be stored again because of them.
    """
    return json.dumps(
        {
            "columns": sorted(layout.columns.items()),
            "fahrenheit": sorted(layout.fahrenheit),
            "precision": layout.precision.value,
            "sensor_name": layout.sensor_name,
            "time_format": layout.time_format,
            "time_zone": layout.time_zone,
        }
    ).encode()


def _digest(path: Path, options: bytes) -> str:
    """Return the beginning of the keys of a whole file: the digest of its content and of the options."""
    try:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256")
    except OSError as error:
        raise ConfigurationError(f"Can't read {path}: {error.strerror}") from error
    content.update(options)
    return content.hexdigest()
