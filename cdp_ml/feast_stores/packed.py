"""One customer's features of one view as bytes: how the online stores keep them.

    event timestamp, created timestamp    8 bytes each, big endian, so that bytes order as times do
    fingerprint of the view's layout      4 bytes
    nulls                                 one bit a feature
    values                                8 bytes a feature, little endian: double or integer;
                                          of a text, where it ends among the texts that follow
    texts                                 UTF-8

The fingerprint tells values of another definition of the view from those that can be read.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast.types import from_feast_to_pyarrow_type

from cdp_ml.errors import ContractError

if TYPE_CHECKING:
    from feast.feature_view import FeatureView

FORMAT = 1
"""Changes when the layout of the bytes does."""

_HEADER = struct.Struct(">QQ4s")
_TIMES = 16
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TIME_TYPE = pa.timestamp("us", "UTC")
_CODES = {
    "Float64": "d",
    "Float32": "d",
    "Int64": "q",
    "Int32": "q",
    "Bool": "q",
    "UnixTimestamp": "q",
    "String": "s",
}


@dataclass(frozen=True)
class Layout:
    """How the features of a view lie in the bytes.

    Attributes:
        view: the view's name.
        names: its features.
        types: their Feast types, by name.
    """

    view: str
    names: tuple[str, ...]
    types: tuple[str, ...]

    @classmethod
    def of(cls, view: FeatureView) -> Layout:
        """The layout of a view.

        Raises:
            ContractError: if a feature has a type that cannot be packed.
        """
        types = tuple(str(field.dtype) for field in view.features)
        for field, type_ in zip(view.features, types, strict=True):
            if type_ not in _CODES:
                raise ContractError(
                    f"feature '{view.name}:{field.name}': the packed online stores hold no "
                    f"{type_}; valid types: {', '.join(_CODES)}"
                )
        return cls(view.name, tuple(f.name for f in view.features), types)

    @cached_property
    def fingerprint(self) -> bytes:
        """Four bytes that differ between layouts."""
        said = json.dumps([FORMAT, list(self.names), list(self.types)])
        return zlib.crc32(said.encode()).to_bytes(4, "big")

    @cached_property
    def _nulls(self) -> int:
        return -(-len(self.names) // 8)

    @cached_property
    def _no_nulls(self) -> bytes:
        return bytes(self._nulls)

    @cached_property
    def _values(self) -> struct.Struct:
        return struct.Struct("<" + "".join(self._codes).replace("s", "q"))

    @cached_property
    def _codes(self) -> list[str]:
        return [_CODES[t] for t in self.types]

    @cached_property
    def _revived(self) -> list[tuple[int, str]]:
        """Features whose number stands for something else."""
        return [(i, t) for i, t in enumerate(self.types) if t in ("Bool", "UnixTimestamp")]

    @cached_property
    def _texts(self) -> list[int]:
        return [i for i, code in enumerate(self._codes) if code == "s"]

    @cached_property
    def _dtype(self) -> np.dtype[Any]:
        head = [
            ("event", ">u8"),
            ("created", ">u8"),
            ("layout", "V4"),
            ("nulls", "u1", self._nulls),
        ]
        slots = [(f"v{i}", "<f8" if c == "d" else "<i8") for i, c in enumerate(self._codes)]
        return np.dtype([*head, *slots])

    def pack(self, rows: pa.Table, event: str, created: str | None = None) -> list[bytes]:
        """The bytes of each row.

        Args:
            rows: the view's features and timestamps; of a text column, UTF-8.
            event: the column of the event timestamp; without a time zone it is UTC.
            created: likewise of the created timestamp, if there is one.
        """
        packed = np.zeros(rows.num_rows, self._dtype)
        packed["event"] = _sortable(rows[event])
        if created:
            packed["created"] = _sortable(rows[created])
        packed["layout"] = np.void(self.fingerprint)
        columns = [rows[name] for name in self.names]
        nulls = np.zeros((rows.num_rows, len(columns)), bool)
        for i, column in enumerate(columns):
            if column.null_count:
                nulls[:, i] = column.is_null().to_numpy()
        packed["nulls"] = np.packbits(nulls, axis=1, bitorder="little")
        for i, column in enumerate(columns):
            if self._codes[i] != "s":
                packed[f"v{i}"] = self._numbers(column, self.types[i])
        texts = self._pack_texts(packed, columns)
        fixed: list[bytes] = packed.view(f"V{packed.dtype.itemsize}").tolist()
        return [a + b for a, b in zip(fixed, texts, strict=True)] if texts else fixed

    def _numbers(self, column: pa.ChunkedArray, type_: str) -> np.ndarray:
        if type_ == "UnixTimestamp":
            # Whole seconds, as Feast's own values have them.
            column = column.cast(pa.timestamp("s", "UTC"), safe=False).cast(pa.int64())
        target = pa.float64() if _CODES[type_] == "d" else pa.int64()
        found: np.ndarray = column.cast(target).fill_null(0).to_numpy()
        return found

    def _pack_texts(self, packed: np.ndarray, columns: Sequence[pa.ChunkedArray]) -> list[bytes]:
        """Note where each text ends, and return the texts of each row, joined."""
        end, texts = np.zeros(len(packed), np.int64), []
        for i in self._texts:
            text = columns[i].cast(pa.string()).fill_null("")
            end = end + pc.binary_length(text).to_numpy()
            packed[f"v{i}"] = end
            texts.append([value.encode() for value in text.to_pylist()])
        return [b"".join(row) for row in zip(*texts, strict=True)]

    def unpack(self, value: bytes) -> list[Any]:
        """The features of a row, None where null.

        Raises:
            ContractError: if the bytes were written for another definition of the view.
        """
        if value[_TIMES : _TIMES + 4] != self.fingerprint:
            raise ContractError(
                f"the online values of view '{self.view}' were written for another definition of "
                "it; run 'cdp-ml refresh', or 'feast teardown' and 'feast materialize'"
            )
        start = _HEADER.size + self._nulls
        values: list[Any] = list(self._values.unpack_from(value, start))
        if self._texts:
            self._unpack_texts(values, value[start + self._values.size :])
        for i, type_ in self._revived:
            values[i] = bool(values[i]) if type_ == "Bool" else _EPOCH + timedelta(0, values[i])
        nulls = value[_HEADER.size : start]
        if nulls != self._no_nulls:
            bits = int.from_bytes(nulls, "little")
            while bits:
                values[(bits & -bits).bit_length() - 1] = None
                bits &= bits - 1
        return values

    def _unpack_texts(self, values: list[Any], texts: bytes) -> None:
        start = 0
        for i in self._texts:
            end = values[i]
            values[i] = texts[start:end].decode()
            start = end


def event_time(value: bytes) -> datetime:
    """The event timestamp of a row."""
    return _EPOCH + timedelta(microseconds=int.from_bytes(value[:8], "big") - 2**63)


def oldest(ttl: timedelta | None, now: datetime) -> bytes:
    """What the bytes of a row that still holds at `now` do not sort before."""
    if not ttl:
        return b""
    return ((now - ttl - _EPOCH) // timedelta(microseconds=1) + 2**63).to_bytes(8, "big")


def entity_keys(rows: pa.Table, join_keys: Sequence[str]) -> pa.ChunkedArray:
    """The text under which each row's entity is kept; see `entity_key`."""
    texts = [rows[key].cast(pa.string()) for key in sorted(join_keys)]
    if len(texts) == 1:
        return texts[0]
    lengths = [pc.utf8_length(text).cast(pa.string()) for text in texts]
    parts = [x for pair in zip(lengths, texts, strict=True) for x in pair]
    return pc.binary_join_element_wise(*parts, ":")


def entity_key(values: Sequence[Any]) -> str:
    """The text under which an entity is kept: its id, or its ids with their lengths.

    Args:
        values: the entity's ids, in the order of the names of their join keys.
    """
    if len(values) == 1:
        return str(values[0])
    return ":".join(f"{len(str(value))}:{value}" for value in values)


def arrow_schema_of(view: FeatureView) -> pa.Schema:
    """The columns of a view's features."""
    return pa.schema([(f.name, from_feast_to_pyarrow_type(f.dtype)) for f in view.features])


def _sortable(times: pa.ChunkedArray) -> np.ndarray:
    """Microseconds as numbers without sign; null is the earliest."""
    if times.type != _TIME_TYPE:
        naive = pa.types.is_timestamp(times.type) and times.type.tz is None
        times = times.cast(pa.timestamp("us"), safe=False) if naive else times
        times = times.cast(_TIME_TYPE, safe=False)
    micros = times.cast(pa.int64()).fill_null(-(2**63)).to_numpy()
    found: np.ndarray = micros.view(np.uint64) ^ np.uint64(2**63)
    return found
