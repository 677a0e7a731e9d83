"""What the identity step costs, from the lake's tables to the lake's tables, at several sizes.

    python benchmarks/identity_cost.py [RECORDS ...]

Each size is a world of `cdp_ml.synthetic.generate_records`, standardized and written to a lake.
Then, each in a process of its own, the step runs as a refresh runs it: link, assign customer ids,
write `edges`, `compared`, `reviews`, `crosswalk` and `identity_log`. Prints a Markdown table: CPU
and wall seconds of the step (without imports and without making the world), peak memory, and

- `first`: everything is new, the model is trained;
- `again`: all records are linked again with the same model;
- `retrained`: all records are linked again with a newly trained model;
- `5% more`: one record in twenty is new, the others were linked before;
- `1% more, retrained`: one in a hundred is new, and the model is trained anew.

`ids kept` is the share of the records linked before whose customer id is still the same; `differs`
counts the links and edges in which linking what is new differs from linking all with that model.
`growth` is the exponent with which the CPU seconds grew from the size before (1 is linear).
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from measuring import measured, measuring

RECORDS_A_PERSON = 2.2
CONFIGURATION = "name: cost\nas_of: 2026-07-01\nmodels: []\nsources: {}\n"
SIZES = (100_000, 1_000_000)
STEPS = {
    "first": ("whole", False),
    "again": ("whole", True),
    "retrained": ("whole", False),
    "5% more": ("five", True),
    "1% more, retrained": ("one", False),
}
"""By step: its lake, and whether the model that is there is used."""


def make_world(folder: Path, records: int) -> None:
    """Three lakes of one world: all records, and two that lack the newest 5% and 1%."""
    from cdp_ml.config import Engine
    from cdp_ml.engine import connect
    from cdp_ml.lake import Lake
    from cdp_ml.standardize import standardize_people
    from cdp_ml.synthetic import generate_records

    delivered, identifiers, truth = generate_records(round(records / RECORDS_A_PERSON))
    people = standardize_people(delivered, "GB", connect(Engine()))
    truth.to_pandas().to_parquet(folder / "truth.parquet")
    order = pc.rank(people["ingested_at"], tiebreaker="first")
    for name, share in (("whole", 1.0), ("five", 0.95), ("one", 0.99)):
        known = pc.less_equal(order, int(share * people.num_rows))
        lake = Lake(folder / name / ".cdp" / "lake")
        lake.write("records", people.filter(known))
        lake.write("identifiers", identifiers)
        (folder / name / "cdp.yaml").write_text(CONFIGURATION)
        save(folder / name, lake.versions, {})
    Lake(folder / "rest").write("records", people)


def save(home: Path, versions: dict[str, int], report: dict[str, Any]) -> None:
    """Keep what the next process goes on from."""
    (home / "state.json").write_text(json.dumps({"versions": versions, "report": report}))


def run_step(home: Path, keep_model: bool, days: int) -> None:
    """Run the identity step once and print what it took."""
    import deltalake  # noqa: F401 what is imported once is not the step's cost
    import duckdb
    import matplotlib.figure  # noqa: F401
    import pyarrow.dataset  # noqa: F401
    import scipy.sparse.csgraph  # noqa: F401
    import splink  # noqa: F401
    from mlflow import MlflowClient

    import cdp_ml.identity.linkage
    import cdp_ml.identity.report  # noqa: F401
    from cdp_ml import steps
    from cdp_ml.config import IdentitySpec, load_settings, load_spec
    from cdp_ml.journal import Journal
    from cdp_ml.lake import Lake
    from cdp_ml.learn.registry import tracking_uri

    state = json.loads((home / "state.json").read_text())
    settings = load_settings(home)
    spec = load_spec(settings.share("models") / "identity.yaml", IdentitySpec)
    journal = Journal(home / "journal.json", versions=state["versions"])
    now = datetime(2026, 7, 1, tzinfo=UTC) - timedelta(days=30 - days)
    journal.run = {"run_id": "cost", "known_at": now.isoformat()}
    journal.steps = {"identity": {"report": state["report"] if keep_model else {}}}
    lake = Lake(settings.lake, journal.versions)
    run = steps.Run(settings, {}, spec, journal, lake)
    run.con.raw_sql("SELECT 1")
    duckdb.connect().execute("SELECT 1")
    MlflowClient(tracking_uri(settings)).search_experiments()  # a store is made but once
    with measuring() as found:
        report = steps.identity(run)
        found |= report
    save(home, lake.versions, report)


def measured_step(home: Path, keep_model: bool, days: int) -> dict[str, Any]:
    """Run the step in a process of its own."""
    return measured(__file__, "--step", home, int(keep_model), days)


def ids(home: Path) -> dict[str, pa.Table]:
    """The crosswalk's links that hold, and the edges."""
    from cdp_ml.lake import Lake

    lake = Lake(home / ".cdp" / "lake", json.loads((home / "state.json").read_text())["versions"])
    crosswalk = lake.arrow("crosswalk")
    return {
        "links": crosswalk.filter(pc.is_null(crosswalk["valid_to"])),
        "edges": lake.arrow("edges").drop(["known_at"]),
    }


def kept(before: pa.Table, after: pa.Table) -> float:
    """The share of the records linked before that have the same customer id now."""
    import duckdb

    asked = """SELECT avg((b.customer_id = a.customer_id)::INTEGER)
        FROM before b JOIN after a USING (source, source_record_id)"""
    return float(duckdb.sql(asked).fetchall()[0][0])


def differing(one: dict[str, pa.Table], other: dict[str, pa.Table]) -> int:
    """In how many records' clusters, and how many edges, two results differ."""
    import duckdb

    names = ("one_links", "other_links", "one_edges", "other_edges")
    tables = (one["links"], other["links"], one["edges"], other["edges"])
    db = duckdb.connect()
    for name, table in zip(names, tables, strict=True):
        db.register(name, table)
    cluster = "min(source || ':' || source_record_id) OVER (PARTITION BY customer_id)"
    by_first = [f"SELECT source, source_record_id, {cluster} FROM {n}" for n in names[:2]]
    pairs = [by_first, [f"SELECT record_l, record_r, kind FROM {n}" for n in names[2:]]]
    found = [
        db.sql(f"SELECT count(*) FROM (({a} EXCEPT {b}) UNION ALL ({b} EXCEPT {a}))").fetchall()
        for a, b in pairs
    ]
    return int(found[0][0][0] + found[1][0][0])


def all_again_with_same_model(home: Path) -> dict[str, pa.Table]:
    """What linking all records with the model of the last step gives; nothing is written."""
    from cdp_ml.config import IdentitySpec, load_settings, load_spec
    from cdp_ml.engine import connect
    from cdp_ml.identity.linkage import link
    from cdp_ml.identity.model import Model
    from cdp_ml.lake import Lake

    state, settings = json.loads((home / "state.json").read_text()), load_settings(home)
    model = Model.load(settings.linkage_model(state["report"]["model"]["version"]))
    spec = load_spec(settings.share("models") / "identity.yaml", IdentitySpec)
    lake, con = Lake(settings.lake, state["versions"]), connect(settings.engine)
    found = link(lake.read("records", con), lake.read("identifiers", con), spec, con, model=model)
    links = found.clusters.select(["source", "source_record_id", "cluster"])
    links = links.rename_columns(["source", "source_record_id", "customer_id"])
    return {"links": links, "edges": found.edges.drop(["known_at"])}


def accuracy(folder: Path) -> dict[str, float]:
    """Pairwise precision, recall and F1 of the whole world's customers."""
    import pyarrow.parquet as pq

    from cdp_ml.config import Engine
    from cdp_ml.engine import connect
    from cdp_ml.identity.evaluate import evaluate_linkage

    truth = pq.read_table(folder / "truth.parquet")
    return evaluate_linkage(ids(folder / "whole")["links"], truth, connect(Engine()))


def rows_of(folder: Path) -> Iterator[tuple[str, dict[str, Any], str, str]]:
    """All steps of one world: name, what it took, ids kept, differences."""
    from cdp_ml.lake import Lake

    whole = folder / "whole"
    yield "first", measured_step(whole, False, 1), "", ""
    before = ids(whole)["links"]
    forget_compared(whole)
    for days, (name, keep) in enumerate((("again", True), ("retrained", False)), 2):
        row = measured_step(whole, keep, days)
        yield name, row, f"{kept(before, ids(whole)['links']):.2%}", ""
    for name, lake, keep in (("5% more", "five", True), ("1% more, retrained", "one", False)):
        home = folder / lake
        measured_step(home, False, 1)
        before = ids(home)["links"]
        add_the_rest(home, Lake(folder / "rest", {"records": 0}).arrow("records"))
        row = measured_step(home, keep, 2)
        now = ids(home)
        same = str(differing(now, all_again_with_same_model(home))) if keep else ""
        yield name, row, f"{kept(before, now['links']):.2%}", same


def add_the_rest(home: Path, people: pa.Table) -> None:
    """Deliver the records that the lake lacks."""
    from cdp_ml.config import Engine
    from cdp_ml.engine import connect
    from cdp_ml.lake import Lake

    state = json.loads((home / "state.json").read_text())
    lake = Lake(home / ".cdp" / "lake", state["versions"])
    lake.upsert("records", people, connect(Engine()))
    save(home, lake.versions, state["report"])


def forget_compared(home: Path) -> None:
    """Make the step link all records, as it does when nothing is known of what it compared."""
    state = json.loads((home / "state.json").read_text())
    del state["versions"]["compared"]
    save(home, state["versions"], state["report"])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("records", nargs="*", type=int, default=SIZES)
    parser.add_argument("--step", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        home, keep, days = arguments.step
        run_step(Path(home), bool(int(keep)), int(days))
        return
    print("| records | step | linked | CPU s | s | GiB | ids kept | differs | growth |")
    print("|---:|---|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    last: dict[str, tuple[int, float]] = {}
    for records in arguments.records:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([sys.executable, "-c", MAKE, folder, str(records)], check=True)
            for name, row, same, differs in rows_of(Path(folder)):
                size, linked = (row["metrics"]["identity"][k] for k in ("records", "linked_again"))
                was = last.get(name)
                growth = math.log(row["cpu"] / was[1]) / math.log(size / was[0]) if was else None
                last[name] = (size, row["cpu"])
                cells = [f"{size:,}", name, f"{linked:,}", f"{row['cpu']:.1f}"]
                cells += [
                    f"{row['wall']:.1f}",
                    f"{row['gib']:.2f}",
                    same,
                    differs,
                    f"{growth:.2f}" if growth else "",
                ]
                print(f"| {' | '.join(cells)} |", flush=True)
            found = accuracy(Path(folder))
        said = ", ".join(f"{k} {found[k]:.4f}" for k in ("precision", "recall", "f1"))
        print(f"\n{records:,}: {said}\n", flush=True)


MAKE = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from identity_cost import make_world
make_world(Path(sys.argv[1]), int(sys.argv[2]))
"""

if __name__ == "__main__":
    main()
