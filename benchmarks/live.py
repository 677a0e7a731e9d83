"""How soon an event changes the features that are served.

    python benchmarks/live.py WORKSPACE [WORKSPACE ...]

Each is a published workspace, such as that of `make demo`; it is not changed. Facts of its history
are pushed again under new keys, one at a time and a hundred at a time, into an online store of its
own; then the customer's features are read from there. Prints a Markdown table: milliseconds from
the call to the features read, and what it takes to open.
"""

import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa

import cdp_ml
from cdp_ml.feast_stores import apply, online_features, open_store
from cdp_ml.live import open_live

PUSHES = 40


def measure(home: str) -> list[str]:
    """A row for each size of push."""
    cdp = cdp_ml.open(home)
    now = cdp.as_of + timedelta(hours=1)
    events = cdp.lake.arrow("events")
    known = cdp.table("identifiers").select("identifier_type", "identifier").distinct()
    theirs = cdp.table("events").semi_join(known, ["identifier_type", "identifier"])
    some = theirs.order_by("event_id").limit(PUSHES * 100).to_pyarrow().select(events.column_names)
    stamp = pa.array([now] * len(some), pa.timestamp("us", "UTC"))
    for name in ("event_timestamp", "ingested_at"):
        some = some.set_column(some.column_names.index(name), name, stamp)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(cdp.settings, cdp.lake.versions, Path(folder) / "online.db", now)
        apply(store)
        started = time.perf_counter()
        live = open_live(cdp.settings, store, cdp.lake)
        opened = time.perf_counter() - started
        for size in (1, 100):
            took = []
            for i in range(PUSHES * (1 if size == 1 else 0) or 8):
                facts = some.slice(i * size, size)
                ids = pa.array([f"{size}-{i}-{n}" for n in range(len(facts))])
                facts = facts.set_column(facts.column_names.index("event_id"), "event_id", ids)
                started = time.perf_counter()
                changed = live.push({"events": facts})
                online_features(store, "customer_traits", changed)
                took.append(1000 * (time.perf_counter() - started))
            p50, p99 = np.percentile(took[1:], [50, 99])
            cells = (f"{len(events):,}", size, f"{opened:.1f}", f"{p50:.0f}", f"{p99:.0f}")
            rows.append(f"| {' | '.join(map(str, cells))} |")
    return rows


if __name__ == "__main__":
    print("| events | pushed at once | s to open | p50 ms | p99 ms |")
    print("|---:|---:|---:|---:|---:|")
    for workspace in sys.argv[1:]:
        print("\n".join(measure(workspace)), flush=True)
