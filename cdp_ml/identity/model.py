"""The trained linkage model: all that was learned, frozen until the next training."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

TABLES = ("aliases", "terms", "large_blocks")


@dataclass(frozen=True)
class Block:
    """A blocking rule in use: records whose `keys` (SQL expressions) are equal form a block.

    Blocks that had more than `limit` records when the model was trained are left out.
    """

    rule: str
    keys: tuple[str, ...]
    limit: int


@dataclass(frozen=True)
class Model:
    """What training learned.

    Attributes:
        settings: Splink's settings with the trained parameters.
        kinds: by comparison, its kind in `cdp_ml.identity.comparisons.KINDS`.
        rarest: by field with term frequencies, the frequency of a value seen but once.
        contexts: by context of `cdp_ml.identity.dependence`, the share of matches in it and, by
            field, `m` and `u`; only those that the records show.
        strict: whether another given name and another birth date together exclude a match. Not
            where the records show that who shares a home is one person.
        blocks: the blocking rules in use, the most specific first.
        aliases: given_name, aliases (list).
        terms: field, term (hash of a value that occurs more than once), tf (relative frequency).
        large_blocks: block (number in `blocks`), key (hash) of what is left out.
        spec: fingerprint of the specification that it was trained from.
        records: how many records it learned from.
        sessions: by training rule that expectation maximisation converged within, its `iterations`
            and the `share` of matches among the pairs.
        unobserved: the comparison levels that training never saw, as 'field: level (m, u)': `m` of
            matches is then the declared one, `u` of strangers a small one.
    """

    settings: dict[str, Any]
    kinds: dict[str, str]
    rarest: dict[str, float]
    contexts: dict[str, Any]
    strict: bool
    blocks: tuple[Block, ...]
    aliases: pa.Table = field(repr=False)
    terms: pa.Table = field(repr=False)
    large_blocks: pa.Table = field(repr=False)
    spec: str
    records: int
    sessions: dict[str, Any] = field(default_factory=dict)
    unobserved: tuple[str, ...] = ()

    @property
    def content(self) -> dict[str, Any]:
        """All but the tables, as JSON can hold it."""
        plain = {k: v for k, v in vars(self).items() if k not in TABLES}
        return {**plain, "blocks": [vars(b) for b in self.blocks]}

    @property
    def json(self) -> str:
        """Version and content, as `model.json` holds them."""
        return json.dumps({"version": self.version, **self.content}, indent=1, default=list)

    @property
    def version(self) -> str:
        """A hash of all that was learned."""
        digest = hashlib.sha256(json.dumps(self.content, sort_keys=True, default=list).encode())
        for name in TABLES:
            digest.update(_bytes(getattr(self, name)))
        return digest.hexdigest()[:12]

    def save(self, folder: Path) -> None:
        """Write model.json and, beside it, the tables as Parquet.

        Of the values themselves none is written but common given names; the rest are hashes.
        """
        import pyarrow.parquet as pq

        if folder.is_dir():
            return
        partial = folder.with_name(f"{folder.name}.partial")
        partial.mkdir(parents=True, exist_ok=True)
        for name in TABLES:
            path = partial / f"{name}.parquet"
            # Read again, a list is then of the type that it was: the version hashes it.
            pq.write_table(getattr(self, name), path, use_compliant_nested_type=False)
        (partial / "model.json").write_text(self.json, encoding="utf-8")
        os.replace(partial, folder)

    @classmethod
    def load(cls, folder: Path) -> Model:
        """Read what `save` wrote."""
        import pyarrow.parquet as pq

        content = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        content.pop("version")
        content["blocks"] = tuple(
            Block(b["rule"], tuple(b["keys"]), b["limit"]) for b in content["blocks"]
        )
        content["unobserved"] = tuple(content.get("unobserved", ()))
        tables = {name: pq.read_table(folder / f"{name}.parquet") for name in TABLES}
        return cls(**content, **tables)


def _bytes(table: pa.Table) -> bytes:
    """A table's content, however it is cut into chunks."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table.combine_chunks())
    return bytes(sink.getvalue())
