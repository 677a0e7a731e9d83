"""How long it takes to find who a person is, beside Splink's own call.

    python benchmarks/identity_resolve.py [--records N]

Against the synthetic world with households, a million records where not told otherwise; one request
after the other, in process. Half of the requests are known people with a slip in one field, half
strangers. Prints a Markdown table. *cdp-ml* is the whole request: standardization, candidates,
weights and customers. *score_pairs* is Splink's call alone, for a standardized record with its
candidates in hand.

Below the table: how far the weights are from those of the batch, over the pairs of 500 records.
"""

import argparse
import gc
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
from duckdb import DuckDBPyConnection

from cdp_ml.config import Engine, IdentitySpec, load_spec
from cdp_ml.contracts import PERSON_FIELDS
from cdp_ml.engine import connect
from cdp_ml.identity.linkage import weigh
from cdp_ml.identity.people import make_people
from cdp_ml.identity.resolve import Resolver, open_resolver
from cdp_ml.identity.weighing import make_linker, quiet_splink
from cdp_ml.standardize import standardize_people
from cdp_ml.synthetic import generate_records

ROOT = Path(__file__).resolve().parents[1]
SPEC = load_spec(ROOT / "models" / "identity.yaml", IdentitySpec)
RECORDS_PER_PERSON = 2.2
REQUESTS = 500
SPLINK_REQUESTS = 20

Person = dict[str, Any]


def people_of(records: pa.Table, count: int, random: np.random.Generator) -> list[Person]:
    rows = random.choice(len(records), count, replace=False)
    return records.select(list(PERSON_FIELDS)).take(rows).to_pylist()


def with_slip(person: Person, random: np.random.Generator) -> Person:
    """Two letters changed places in a field that is known."""
    field = random.choice([f for f in PERSON_FIELDS if len(person[f] or "") > 2])
    value = person[field]
    at = int(random.integers(len(value) - 1))
    return {**person, field: value[:at] + value[at + 1] + value[at] + value[at + 2 :]}


def requests(records: pa.Table, random: np.random.Generator) -> list[Person]:
    strangers, _, _ = generate_records(REQUESTS * 2, seed=8)
    known = [with_slip(p, random) for p in people_of(records, REQUESTS // 2, random)]
    asked = [*known, *people_of(strangers, REQUESTS // 2, random)]
    return [asked[i] for i in random.permutation(len(asked))]


def milliseconds(call: Callable[[Any], Any], given: Iterable[Any]) -> list[float]:
    taken = []
    for one in given:
        start = time.perf_counter()
        call(one)
        taken.append(1000 * (time.perf_counter() - start))
    return taken


def gibibytes() -> float:
    gc.collect()
    return float(psutil.Process().memory_info().rss) / 2**30


def splink_calls(
    db: DuckDBPyConnection, resolver: Resolver, asked: list[Person]
) -> dict[str, list[float]]:
    """Splink's calls on the same records, for the first requests that have candidates."""
    make_people(db, resolver.model)
    linker = make_linker(db, resolver.model)
    given = []
    for person in asked:
        rows, record = resolver._candidates(resolver._standardized(person))
        if len(rows):
            given.append((record, resolver.base.people.take(rows)))
    given = given[:SPLINK_REQUESTS]
    with quiet_splink():
        return {"score_pairs": milliseconds(partial(_score_pairs, linker), given)}


def _score_pairs(linker: Any, given: tuple[pa.Table, pa.Table]) -> None:
    left, right = (linker._db_api.register(t) for t in given)
    linker.inference.score_pairs(left, right).as_pyarrow_table()


def differences(
    db: DuckDBPyConnection, resolver: Resolver, raw: pa.Table, random: np.random.Generator
) -> tuple[int, float]:
    """Pairs found both here and in the batch, and how far apart their weights are at most."""
    rows = raw.take(random.choice(len(raw), REQUESTS, replace=False))
    found, apart = 0, 0.0
    for row in rows.to_pylist():
        weights = batch_weights(db, f"{row['source']}:{row['source_record_id']}")
        for c in resolver.resolve({f: row[f] for f in PERSON_FIELDS}, least=0.0):
            if (key := f"{c['source']}:{c['source_record_id']}") in weights:
                found += 1
                apart = max(apart, abs(c["match_weight"] - weights[key]))
    return found, apart


def batch_weights(db: DuckDBPyConnection, record: str) -> dict[str, float]:
    asked = """
        WITH own AS (SELECT unique_id FROM nodes WHERE record = $1)
        SELECT record, weight FROM nodes JOIN (
            SELECT other AS unique_id, weight FROM pairs WHERE one = (FROM own)
            UNION ALL SELECT one, weight FROM pairs WHERE other = (FROM own)
        ) USING (unique_id)
    """
    return dict(db.execute(asked, [record]).fetchall())


def row(tool: str, records: int, opened: str, size: str, taken: list[float]) -> str:
    p50, p90, p99 = np.percentile(taken, (50, 90, 99))
    return f"| {tool} | {records:,} | {opened} | {size} | {p50:.1f} | {p90:.1f} | {p99:.1f} |"


def main(size: int) -> None:
    con, random = connect(Engine()), np.random.default_rng(1)
    raw, identifiers, truth = generate_records(round(size / RECORDS_PER_PERSON))
    records = standardize_people(raw, "GB", con)
    db, model = weigh(records, identifiers, SPEC, con)
    crosswalk = truth.rename_columns(["source", "source_record_id", "customer_id"])
    never = pa.nulls(len(truth), pa.timestamp("us", "UTC"))
    before, start = gibibytes(), time.perf_counter()
    standardize = partial(standardize_people, region="GB", con=connect(Engine(threads=1)))
    resolver = open_resolver(
        records, crosswalk.append_column("valid_to", never), model, SPEC, standardize, con
    )
    opened, held = f"{time.perf_counter() - start:.1f}", f"{gibibytes() - before:.2f}"
    asked = requests(raw, random)
    print("| call | records | open (s) | GiB | p50 (ms) | p90 (ms) | p99 (ms) |")
    print("|---|---|---|---|---|---|---|")
    print(row("cdp-ml", len(raw), opened, held, milliseconds(resolver.resolve, asked)))
    for name, taken in splink_calls(db, resolver, asked).items():
        print(row(f"Splink's {name}", len(raw), "", "", taken))
    pairs, apart = differences(db, resolver, raw, random)
    print(f"\nThe weights of {pairs:,} pairs differ from the batch's by {apart:.1e} bits at most.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=1_000_000)
    main(parser.parse_args().records)
