"""Rows of Parquet files by their place, taken a column at a time.

A query that finds which rows are wanted looks at few columns. To join the others to what it found
would carry each of them through a hash table; to read a column as it lies and take the wanted
values from it costs half of that, and the memory of one column of one row group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from pyarrow.parquet import FileMetaData

_FILE_BITS = 40

PLACE = f"(file_index::BIGINT << {_FILE_BITS}) + file_row_number"
"""DuckDB's SQL for a row's place in a list of files; later rows have larger ones."""


def columns_at(
    files: Sequence[str], places: np.ndarray, schema: pa.Schema
) -> Iterator[pa.ChunkedArray]:
    """The columns of the rows that lie at some places, one after the other.

    Args:
        files: the list that the places are of.
        places: ascending, as `PLACE` numbers them.
        schema: the columns wanted; what a file lacks is null there.

    Yields:
        A value a place, in the same order.
    """
    import pyarrow as pa

    groups = list(_row_groups(files, places))
    for field in schema:
        chunks = [chunk for group in groups for chunk in group.taken(field).chunks]
        yield pa.chunked_array(chunks, field.type)


@dataclass(frozen=True)
class _RowGroup:
    """A row group that holds wanted rows, and where in it these are."""

    path: str
    metadata: FileMetaData
    number: int
    at: pa.Array

    def taken(self, field: pa.Field) -> pa.ChunkedArray:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if field.name not in self.metadata.schema.names:
            return pa.chunked_array([pa.nulls(len(self.at), field.type)])
        with pq.ParquetFile(self.path, metadata=self.metadata) as file:
            column = file.read_row_group(self.number, [field.name], use_threads=False).column(0)
        return column.take(self.at).cast(field.type)


def _row_groups(files: Sequence[str], places: np.ndarray) -> Iterator[_RowGroup]:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    for number, path in enumerate(files):
        first, next_file = number << _FILE_BITS, (number + 1) << _FILE_BITS
        if not np.diff(np.searchsorted(places, (first, next_file)))[0]:
            continue
        metadata = pq.read_metadata(path)
        for group in range(metadata.num_row_groups):
            past = first + metadata.row_group(group).num_rows
            low, high = np.searchsorted(places, (first, past))
            if high > low:
                yield _RowGroup(path, metadata, group, pa.array(places[low:high] - first))
            first = past
