"""How long an online read of 40 features takes: fast, and by Feast on our stores and on its own.

    python benchmarks/feast_online.py [CUSTOMERS]

Two views of CUSTOMERS rows (by default 200,000; Feast's own stores get 20,000, which takes them a
tenth of the time to fill and is no slower to read), 20 features each. Prints a Markdown table: the
median and the 99th percentile of a read of one and of 100 random customers, in milliseconds, in one
process. Of Redis, on this machine, also what asking it for keys that it lacks takes by itself.
"""

import io
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from feast_materialize import online_config, redis_server
from feast_world import START, in_process, make_store

STOCK = 20_000
ONE, MANY = 3_000, 300
"""How many reads are timed, of one customer and of 100."""


def milliseconds(read: Callable[[Sequence[str]], object], ids: Sequence[str], size: int) -> str:
    """Median and 99th percentile of reads of some random customers."""
    random = np.random.default_rng(7)
    took = []
    for i in range((ONE if size == 1 else MANY) + 50):
        asked = [ids[at] for at in random.integers(0, len(ids), size)]
        started = time.perf_counter()
        read(asked)
        if i >= 50:
            took.append(1_000 * (time.perf_counter() - started))
    return f"{np.median(took):.3f} | {np.quantile(took, 0.99):.3f}"


def ways(folder: Path, kind: str, where: str, store: str) -> dict[str, Callable[..., object]]:
    """The reads that a filled store offers."""
    from cdp_ml.feast_stores import open_reader

    config: dict[str, Any] = online_config(kind, store, where)
    config |= {"now": START} if kind == "packed" else {}
    feast = make_store(folder, f"{kind}-{store}", kind == "stock", config, timedelta(days=35))
    with redirect_stdout(io.StringIO()):
        feast.materialize(start_date=START - timedelta(days=1), end_date=START)
    service = feast.get_feature_service("all")

    def by_feast(ids: Sequence[str]) -> object:
        rows = [{"customer_id": customer} for customer in ids]
        return feast.get_online_features(features=service, entity_rows=rows).to_dict()

    if kind == "stock":
        return {f"get_online_features, Feast's {store}": by_feast}
    reader = open_reader(feast, "all")
    assert reader.read(["nobody"]) == by_feast(["nobody"])
    found = {f"fast read, {store}": reader.read, f"get_online_features, our {store}": by_feast}
    return {
        **({"round trip to redis alone": round_trip(where)} if store == "redis" else {}),
        **found,
    }


def round_trip(port: str) -> Callable[[Sequence[str]], object]:
    """Ask Redis for as many keys as two views of some customers are, by a socket alone."""
    server = socket.create_connection(("127.0.0.1", int(port)))
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(ids: Sequence[str]) -> object:
        keys = [f"${len(key)}\r\n{key}\r\n" for key in ids for _ in range(2)]
        server.sendall(f"*{len(keys) + 1}\r\n$4\r\nMGET\r\n{''.join(keys)}".encode())
        return server.recv(1 << 20)

    return ask


def main() -> None:
    """Print the table."""
    import pyarrow.parquet as pq

    customers = int(sys.argv[1]) if sys.argv[1:] else 200_000
    print("| read | one: p50 ms | p99 ms | 100: p50 ms | p99 ms |\n|---|---:|---:|---:|---:|")
    has_redis = bool(shutil.which("redis-server"))
    with (
        tempfile.TemporaryDirectory() as made,
        redis_server() if has_redis else nullcontext("") as port,
    ):
        for kind, store in ((k, s) for k in ("packed", "stock") for s in ("sqlite", "redis")):
            if store == "redis" and not has_redis:
                continue
            folder = Path(made) / f"{kind}-{store}"
            folder.mkdir()
            in_process("make_lake", folder, STOCK if kind == "stock" else customers, 1)
            keys = pq.read_table(folder / "lake" / "traits_transactional", columns=["customer_id"])
            ids = keys["customer_id"].to_pylist()
            where = port if store == "redis" else str(folder / "online.db")
            for said, read in ways(folder, kind, where, store).items():
                cells = [milliseconds(read, ids, size) for size in (1, 100)]
                print(f"| {said} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
