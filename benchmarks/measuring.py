"""What the benchmarks share to measure: each thing in a process of its own, which prints JSON."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def taking() -> Iterator[dict[str, float]]:
    """What the block took, once it is done: `cpu` and `wall` seconds, and the peak `gib`."""
    took: dict[str, float] = {}
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    yield took
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    cpu = sum(after[:2]) - sum(before[:2])
    took |= {"cpu": cpu, "wall": wall, "gib": peak_gib()}


def peak_gib() -> float:
    """The most memory that this process has had."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    # Linux hands `ru_maxrss` of who starts a process on to it; this is the process's own.
    (line,) = (x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
    return int(line.split()[1]) / 2**20


@contextmanager
def measuring(**more: Any) -> Iterator[dict[str, Any]]:
    """Print, as JSON, what the block took, and `more`."""
    found = dict(more)
    with taking() as took:
        yield found
    print(json.dumps({**took, **found}))


def measured(script: str, *arguments: str | int | Path) -> dict[str, Any]:
    """Run a script in a process of its own, and read what it measured."""
    asked = [sys.executable, script, *map(str, arguments)]
    done = subprocess.run(asked, check=True, stdout=subprocess.PIPE, env=os.environ)
    return dict(json.loads(done.stdout.splitlines()[-1]))
