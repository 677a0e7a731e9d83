"""Rows of Parquet files by their place, taken a column or a row group at a time.

A query that finds which rows are wanted looks at few columns. To join the others to what it found
would carry each of them through a hash table; to read a column as it lies and take the wanted
values from it costs half of that, and the memory of one column of one row group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

_FILE_BITS = 40

PLACE = f"(file_index::BIGINT << {_FILE_BITS}) + file_row_number"
"""DuckDB's SQL for a row's place in a list of files; later rows have larger ones."""


def columns_at(
    files: Sequence[str], places: np.ndarray, schema: pa.Schema
) -> Iterator[pa.ChunkedArray]:
    """The columns of the rows that lie at some places, one after the other.

    Args:
        files: the list that the places are of.
        places: ascending, as `PLACE` numbers them; the same may be wanted more than once.
        schema: the columns wanted; what a file lacks is null there.

    Yields:
        A value a place, in the same order.
    """
    import pyarrow as pa

    with ExitStack() as opened:
        groups = list(_row_groups(files, places, opened))
        for field in schema:
            wanted = pa.schema([field])
            chunks = [c for group in groups for c in group.rows(wanted).column(0).chunks]
            yield pa.chunked_array(chunks, field.type)


def blocks_at(files: Sequence[str], places: np.ndarray, schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows that lie at some places, a row group after the other.

    Whoever is done with a block before asking for the next needs the memory of one row group only.
    As that is used again and again, it need not be mapped anew, which costs more than to decode.

    Args:
        files: the list that the places are of.
        places: ascending, as `PLACE` numbers them.
        schema: the columns wanted; what a file lacks is null there.

    Yields:
        The rows in the same order, if there are any.
    """
    with ExitStack() as opened:
        for group in _row_groups(files, places, opened):
            yield group.rows(schema)


@dataclass(frozen=True)
class _RowGroup:
    """A row group that holds wanted rows, and where in it these are."""

    file: ParquetFile
    columns: frozenset[str]
    number: int
    at: np.ndarray

    def rows(self, schema: pa.Schema) -> pa.Table:
        import numpy as np
        import pyarrow as pa

        stored = list({name: None for name in schema.names if name in self.columns})
        group = self.file.read_row_group(self.number, stored, use_threads=len(stored) > 1)
        first, count = int(self.at[0]), len(self.at)
        together = bool(np.all(np.diff(self.at) == 1))  # not by their number: places may repeat
        found = group.slice(first, count) if together else group.take(self.at)
        absent = pa.nulls(count)
        columns = [found[f.name] if f.name in stored else absent for f in schema]
        return pa.table([c.cast(f.type) for c, f in zip(columns, schema, strict=True)], schema)


def _row_groups(files: Sequence[str], places: np.ndarray, opened: ExitStack) -> Iterator[_RowGroup]:
    import numpy as np
    import pyarrow.parquet as pq

    for number, path in enumerate(files):
        first, next_file = number << _FILE_BITS, (number + 1) << _FILE_BITS
        if not np.diff(np.searchsorted(places, (first, next_file)))[0]:
            continue
        # Mapped, a column is decoded from where it lies: half the cost of reading it.
        file = opened.enter_context(pq.ParquetFile(path, memory_map=True))
        columns = frozenset(file.schema_arrow.names)
        for group in range(file.num_row_groups):
            past = first + file.metadata.row_group(group).num_rows
            low, high = np.searchsorted(places, (first, past))
            if high > low:
                yield _RowGroup(file, columns, group, places[low:high] - first)
            first = past
