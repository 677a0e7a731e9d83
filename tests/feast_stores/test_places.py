"""Rows by their place: of several files and row groups, some more than once."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdp_ml.feast_stores.places import blocks_at, columns_at

SCHEMA = pa.schema([("n", pa.int64()), ("also", pa.string())])
ROWS, GROUP = 7, 3
FILES = range(2)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two files of seven rows in groups of three; only the second has the column `also`."""
    folder = tmp_path_factory.mktemp("places")
    for file in FILES:
        numbers = [10 * file + row for row in range(ROWS)]
        table = pa.table({"n": numbers, "also": list(map(str, numbers))}, SCHEMA)
        table = table if file else table.select(["n"])
        pq.write_table(table, folder / f"{file}.parquet", row_group_size=GROUP)
    return [str(folder / f"{file}.parquet") for file in FILES]


def places(wanted):
    return np.array([(file << 40) + row for file, row in wanted], np.int64)


def expected(wanted):
    numbers = [10 * file + row for file, row in wanted]
    also = [str(n) if file else None for n, (file, _) in zip(numbers, wanted, strict=True)]
    return [numbers, also]


wanted_rows = st.lists(
    st.tuples(st.sampled_from(FILES), st.integers(0, ROWS - 1)), min_size=1, max_size=12
).map(sorted)


@settings(deadline=None)
@given(wanted_rows)
def test_each_place_gets_its_own_row_however_often_it_is_wanted(files, wanted):
    columns = [c.to_pylist() for c in columns_at(files, places(wanted), SCHEMA)]
    blocks = pa.concat_tables(blocks_at(files, places(wanted), SCHEMA))
    assert columns == [c.to_pylist() for c in blocks.columns] == expected(wanted)


def test_as_many_places_as_a_span_has_rows_are_not_taken_for_that_span(files):
    """Rows 0, 0, 2 are three, as are the rows from 0 to 2."""
    (numbers,) = columns_at(files, places([(0, 0), (0, 0), (0, 2)]), SCHEMA.remove(1))
    assert numbers.to_pylist() == [0, 0, 2]
