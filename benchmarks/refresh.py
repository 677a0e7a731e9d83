"""What a first refresh of the synthetic world costs at three sizes, step by step.

    python benchmarks/refresh.py [PEOPLE ...]

Each size is a world of its own in a temporary folder, refreshed by the command line in a process of
its own. Prints a Markdown table: seconds of each step, in all, CPU seconds and peak memory of the
process; the last column is the exponent with which the CPU seconds grew with the facts from the
size before (1 is linear).
"""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SIZES = (1_250, 5_000, 20_000)


def refreshed(people: int, folder: Path) -> dict[str, float]:
    """Make a world, refresh it, and say what that took."""
    shutil.copy(ROOT / "cdp.yaml", folder)
    run = [sys.executable, "-m", "cdp_ml.cli"]
    made = [*run, "demo-data", "--out", str(folder / "data" / "demo"), "--people", str(people)]
    subprocess.run(made, check=True, stdout=subprocess.DEVNULL)
    with subprocess.Popen(
        [*run, "refresh", "-w", str(folder), "--json"], stdout=subprocess.PIPE
    ) as p:
        assert p.stdout is not None
        outcome = json.load(p.stdout)
        _, status, usage = os.wait4(p.pid, 0)
    assert status == 0, f"refresh ended with exit code {os.waitstatus_to_exitcode(status)}"
    facts = outcome["reports"]["ingest"]["sources"]
    return {
        "people": people,
        "facts": sum(s["read"] for s in facts.values()),
        **outcome["seconds"],
        "in all": sum(outcome["seconds"].values()),
        "CPU s": usage.ru_utime + usage.ru_stime,
        "GiB": usage.ru_maxrss / 2**20,
    }


def growth(now: dict[str, float], before: dict[str, float] | None) -> str:
    """The exponent between two sizes."""
    if before is None:
        return ""
    rows = now["facts"] / before["facts"]
    return f"{math.log(now['CPU s'] / before['CPU s']) / math.log(rows):.2f}"


def main(sizes: list[int]) -> None:
    """Print the table."""
    before = None
    for people in sizes:
        with tempfile.TemporaryDirectory() as folder:
            row = refreshed(people, Path(folder))
        if before is None:
            names = [*row, "growth"]
            print(f"| {' | '.join(names)} |\n|{'---:|' * len(names)}")
        cells = [f"{v:,.0f}" if k in ("people", "facts") else f"{v:.1f}" for k, v in row.items()]
        print(f"| {' | '.join([*cells, growth(row, before)])} |", flush=True)
        before = row


if __name__ == "__main__":
    main([int(a) for a in sys.argv[1:]] or list(SIZES))
