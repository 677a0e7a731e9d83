"""Refreshes a workspace while killing itself at every step; a script that test_refresh.py runs.

usage: killing.py WORKSPACE

Each attempt is a forked process that goes on where the former was killed. After each death another
process looks at what readers see. Prints one JSON line an attempt.
"""

import importlib
import json
import os
import signal
import sys
from pathlib import Path

HEAVY = ("ibis", "deltalake", "splink", "feast", "mlflow", "lightgbm", "sklearn.pipeline", "pandas")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def in_child(work):
    """Run `work` in a fork; returns what it wrote, and how it ended."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            answer = work()
            os.write(writer, json.dumps(answer, default=str).encode())
            os._exit(0)
        except BaseException as error:
            os.write(writer, json.dumps(repr(error)).encode())
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    return json.loads(answer) if answer else None, os.waitstatus_to_exitcode(status)


def refresh_and_die(home, step, moment):
    """Refresh until the moment within the step, then die as by `kill -9`."""
    refresh = importlib.import_module("cdp_ml.refresh")
    lake = importlib.import_module("cdp_ml.lake")
    current = []
    journal = importlib.import_module("cdp_ml.journal").Journal
    commit, save, publish = lake.Lake._commit, journal.save, refresh.publish

    def commit_then_die(*arguments, **options):
        version = commit(*arguments, **options)
        if current[-1:] == [step] and moment == "after its first write":
            die()
        return version

    def die_before_saving(written):
        if current[-1:] == [step] and moment == "before it is recorded":
            die()
        save(written)

    def die_around_publishing(*arguments):
        if moment == "before the publication":
            die()
        publish(*arguments)
        if moment == "after the publication":
            die()

    lake.Lake._commit = commit_then_die
    journal.save = die_before_saving
    refresh.publish = die_around_publishing
    refresh.refresh(home, tell=lambda name, what: current.append(name if what == "run" else ""))


def seen_by_readers(home):
    """The versions that readers see, and the rows of each table, read to its end."""
    from cdp_ml.lake import Lake

    seen = Lake.published(Path(home) / ".cdp" / "lake")
    return {"versions": seen.versions, "rows": {t: seen.arrow(t).num_rows
                                                for t in seen.versions if seen.has(t)}}  # fmt: skip


def main(home):
    for module in HEAVY:
        importlib.import_module(module)
    refresh = importlib.import_module("cdp_ml.refresh")
    # A step of one table has done all that it does after its first write.
    moments = [(s.name, m) for s in refresh.STEPS
               for m in ("after its first write", "before it is recorded")
               if len(s.writes) > 1 or m == "before it is recorded"]  # fmt: skip
    moments += [("", "before the publication"), ("", "after the publication"), ("", "never")]
    for step, moment in moments:
        error, code = in_child(lambda s=step, m=moment: refresh_and_die(home, s, m))
        seen, _ = in_child(lambda: seen_by_readers(home))
        print(json.dumps({"step": step, "moment": moment, "code": code, "error": error,
                          "seen": seen}), flush=True)  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1])
