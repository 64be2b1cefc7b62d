"""Readings as columns: nothing lost, nothing reordered, each name and source once."""

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from app.ingest.batch import BATCH_SCHEMA, Batch, Reading, Source
from tests.unit.samples import names, readings, sources


def rows(batch: Batch) -> list[Reading]:
    columns = [
        column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column for column in batch.columns.columns
    ]
    return [
        Reading(time_us, batch.sensors[sensor], temperature, humidity, pressure, batch.source)
        for time_us, sensor, temperature, humidity, pressure in zip(
            *(column.to_pylist() for column in columns), strict=True
        )
    ]


@given(st.lists(readings, min_size=1), sources)
def test_the_columns_are_the_readings_in_their_order(sent: list[Reading], source: Source) -> None:
    sent = [each._replace(source=source) for each in sent]
    batch = Batch.of(sent)
    batch.columns.validate(full=True)
    assert batch.columns.schema.equals(BATCH_SCHEMA, check_metadata=True)
    assert list(map(repr, rows(batch))) == list(map(repr, sent)), "repr tells -0.0 from 0.0"


@given(st.lists(readings, min_size=1), st.lists(names, min_size=1, max_size=3))
def test_each_name_is_there_once_in_order_of_appearance(sent: list[Reading], few_names: list[str]) -> None:
    sent = [each._replace(sensor=few_names[place % len(few_names)]) for place, each in enumerate(sent)]
    assert list(Batch.of(sent).sensors) == list(dict.fromkeys(each.sensor for each in sent))
