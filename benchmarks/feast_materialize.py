"""What it costs to fill an online store, beside a raw packed write and Feast's own stores.

    python benchmarks/feast_materialize.py [CUSTOMERS ...] [--stock CUSTOMERS]

Two views of CUSTOMERS rows, 20 features each (by default 200k and 1M customers; Feast's own stores
only up to 200k), are materialized into SQLite and into a Redis server started for it. `raw` reads
the same Parquet files and writes a customer's 40 doubles as one value, in order of the key. Prints
a Markdown table: CPU seconds of the process and, where there is one, of the Redis server; wall
seconds, peak memory, and the bytes stored over the 320 bytes of the values. Each in a process of
its own.
"""

import argparse
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from feast_world import START, TABLES, in_process, make_store, names
from measuring import measured, measuring

PACKED = "cdp_ml.feast_stores.online.Packed"
KINDS = ("raw", "packed", "stock")


def online_config(kind: str, store: str, where: str) -> dict[str, Any]:
    """The configuration of an online store of ours or of Feast.

    Args:
        kind: packed or stock.
        store: sqlite or redis.
        where: the file, or the port on this machine.
    """
    if store == "sqlite":
        return {"type": f"{PACKED}SqliteOnlineStore" if kind == "packed" else store, "path": where}
    if kind == "packed":
        return {"type": f"{PACKED}RedisOnlineStore", "url": f"redis://127.0.0.1:{where}/0"}
    return {"type": "redis", "connection_string": f"127.0.0.1:{where}"}


@contextmanager
def redis_server() -> Iterator[str]:
    """A Redis server without persistence; gives its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        asked = ["redis-server", "--port", port, "--save", "", "--dir", folder]
        server = subprocess.Popen(asked, stdout=subprocess.DEVNULL)
        try:
            time.sleep(0.5)
            yield port
        finally:
            server.terminate()
            server.wait()


def redis_info(port: str) -> tuple[float, int]:
    """CPU seconds that a server has used, and the bytes that it holds."""
    import redis

    info = redis.Redis(port=int(port)).info()
    return info["used_cpu_user"] + info["used_cpu_sys"], info["used_memory"]


def write_raw(folder: Path, store: str, where: str) -> None:
    """One value of 40 doubles a customer, by hand."""
    import numpy as np
    import pyarrow.parquet as pq

    first = pq.read_table(folder / "lake" / TABLES[0]).sort_by("customer_id")
    other = pq.read_table(folder / "lake" / TABLES[1]).sort_by("customer_id")
    columns = [t[name].to_numpy() for i, t in enumerate((first, other)) for name in names(i)]
    packed = np.column_stack(columns)
    values = packed.view(f"V{packed.shape[1] * 8}").ravel().tolist()
    keys = first["customer_id"].to_pylist()
    if store == "sqlite":
        import sqlite3

        with sqlite3.connect(where) as database:
            database.execute("CREATE TABLE t (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID")
            database.executemany("INSERT INTO t VALUES (?, ?)", zip(keys, values, strict=True))
        return
    import redis

    client = redis.Redis(port=int(where))
    for i in range(0, len(keys), 1_000):
        client.mset(dict(zip(keys[i : i + 1_000], values[i : i + 1_000], strict=True)))


def run(folder: Path, kind: str, store: str, where: str) -> None:
    """Fill a store one way, and print what it took."""
    import pyarrow.compute  # noqa: F401 what is imported once is not the write's cost

    if kind == "raw":
        with measuring():
            write_raw(folder, store, where)
    else:
        config = online_config(kind, store, where)
        name = f"{kind}-{store}"
        feast = make_store(folder, name, kind == "stock", config, timedelta(days=35))
        with measuring():
            feast.materialize(start_date=START - timedelta(days=1), end_date=START)
            if kind == "packed":
                feast._get_provider().online_store.settle(feast.config)


def measured_with_size(folder: Path, kind: str, store: str) -> dict[str, Any]:
    """What a way takes, with the bytes that it stored and the CPU seconds of the server."""
    if store == "sqlite":
        path = folder / f"{kind}.db"
        found = measured(__file__, "--run", folder, kind, store, path)
        return {**found, "server": 0.0, "bytes": path.stat().st_size}
    with redis_server() as port:
        cpu, size = redis_info(port)
        found = measured(__file__, "--run", folder, kind, store, port)
        after = redis_info(port)
    return {**found, "server": after[0] - cpu, "bytes": after[1] - size}


def print_rows(folder: Path, customers: int, stock: int) -> None:
    """All ways of one size."""
    for store in ("sqlite", "redis") if shutil.which("redis-server") else ("sqlite",):
        raw = None
        for kind in KINDS if customers <= stock else KINDS[:2]:
            found = measured_with_size(folder, kind, store)
            raw = raw or found
            cells = [f"{found[k]:.2f}" for k in ("cpu", "server", "wall", "gib")]
            cells.append(f"{found['cpu'] / raw['cpu']:.1f}")
            cells.append(f"{found['bytes'] / (customers * 320):.2f}")
            print(f"| {customers:,} | {store} | {kind} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("customers", nargs="*", type=int, default=(200_000, 1_000_000))
    parser.add_argument("--stock", type=int, default=200_000, help="largest size of Feast's own")
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.run:
        folder, kind, store, where = asked.run
        run(Path(folder), kind, store, where)
        return
    print("| customers | store | way | CPU s | server CPU s | s | GiB | x raw | bytes / values |")
    print("|---:|---|---|---:|---:|---:|---:|---:|---:|", flush=True)
    for customers in asked.customers:
        with tempfile.TemporaryDirectory() as made:
            in_process("make_lake", Path(made), customers, 1)
            print_rows(Path(made), customers, asked.stock)


if __name__ == "__main__":
    main()
