"""How good purchase and value models are on real data, out of time, beside their baselines.

    python benchmarks/models.py [CASE ...]

Each case is a workspace on public data (`CDP_SHARED_DATA`, else ../shared/data), refreshed as any
other: its sources are ingested, traits computed as of each instant, models trained on earlier
snapshots whose label windows had closed by the test's instant, and judged there. Nothing is
particular to the benchmark but the specifications below, fixed before the tests were looked at:
weekly snapshots where a year of history leaves a hundred days for them, else monthly ones;
random thresholds (extra_trees); leaves, number of trees, and whether a logistic regression shares
in the log-odds, chosen on the newest closed snapshot.

Prints Markdown tables: of each purchase model the AUC of all baselines, average precision, Brier
score and ECE, and the gain in AUC over BG/NBD; of each value model the normalized Gini of all
baselines, predicted over actual spend, and the gain in Gini over BG/NBD with Gamma-Gamma. In
brackets 95% intervals by a (paired) bootstrap over the test customers.
"""

import argparse
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("CDP_SHARED_DATA", ROOT.parent / "shared" / "data"))
WEEKLY, MONTHLY = {"count": 15, "every_days": 7}, {"count": 12, "every_days": 30}
ESTIMATOR = {"extra_trees": True}
PURCHASE = ("recency", "frequency", "rfm", "bgnbd", "logistic")
VALUE = ("recency", "frequency", "monetary", "rfm", "bgnbd")
CDNOW = """
name: cdnow
as_of: {as_of}
sources:
  shop: {{kind: people, path: orders.parquet, fields: {{source_record_id: customer}}}}
  orders:
    kind: transactions
    path: orders.parquet
    identifier_type: shop
    fields:
      order_id: order
      identifier: customer
      product_id: {{value: cd}}
      quantity: pieces
      unit_price: price
      channel: {{value: web}}
      event_timestamp: day
"""


@dataclass(frozen=True)
class Case:
    """A data set, the day of the refresh, and the models: their task and horizon in days."""

    data: str
    as_of: str
    models: tuple[tuple[str, int], ...]


CASES = {
    "retail": Case("online_retail", "2011-12-09", (("propensity", 90), ("value", 90))),
    "cdnow-january": Case("cdnow", "1998-04-01", (("propensity", 90), ("value", 90))),
    "cdnow-april": Case("cdnow", "1998-06-30", (("propensity", 90), ("value", 180))),
}
"""A test lies one horizon before the day of the refresh: its label window has just closed."""


def make_workspace(case: Case, home: Path) -> None:
    """Write the case's cdp.yaml, sources and model specifications."""
    import yaml

    (home / "models").mkdir(parents=True)
    example = ROOT / "examples" / "online_retail"
    identity = (example / "models" / "identity.yaml").read_text(encoding="utf-8")
    (home / "models" / "identity.yaml").write_text(identity, encoding="utf-8")
    if case.data == "cdnow":
        read_cdnow(DATA / "cdnow_master.txt").to_parquet(home / "orders.parquet")
        settings = CDNOW.format(as_of=case.as_of)
    else:
        settings = (example / "cdp.yaml").read_text(encoding="utf-8")
        settings = settings.replace("../../../shared/data", str(DATA))
        settings = settings.replace("as_of: latest", f"as_of: {case.as_of}")
    (home / "cdp.yaml").write_text(settings, encoding="utf-8")
    for spec in specifications(case):
        path = home / "models" / f"{spec['name']}.yaml"
        path.write_text(yaml.safe_dump(spec), encoding="utf-8")


def specifications(case: Case) -> Iterator[dict[str, Any]]:
    """The models of a case: everyone with a prior order is scored."""
    for task, days in case.models:
        yield {
            "name": f"{task}_{days}d",
            "task": task,
            "description": f"{task} within {days} days",
            "features": "customer_traits",
            "label": {"within_days": days},
            "snapshots": MONTHLY if case.data == "cdnow" else WEEKLY,
            "estimator": ESTIMATOR,
        }


def read_cdnow(path: Path) -> Any:
    """CDNOW's purchases, one row a customer and day."""
    import pandas as pd

    names = ["customer", "date", "pieces", "dollars"]
    rows = pd.read_csv(
        path, sep=r"\s+", header=0, names=names, dtype={"customer": str, "date": str}
    )
    rows["day"] = pd.to_datetime(rows["date"])
    days = rows.groupby(["customer", "day"], as_index=False)[["pieces", "dollars"]].sum()
    days["pieces"] = days["pieces"].clip(lower=1)
    days["price"] = days["dollars"] / days["pieces"]
    days["order"] = days["customer"] + "-" + days["day"].dt.strftime("%Y%m%d")
    return days


def judged(case: Case) -> Iterator[tuple[Any, Any]]:
    """Refresh the case's workspace and train its models again, to have all their metrics."""
    import cdp_ml

    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "workspace"
        make_workspace(case, home)
        cdp_ml.refresh(home)
        cdp = cdp_ml.open(home)
        for name in sorted(cdp.models):
            yield cdp.models[name], cdp.train(name)


def purchase_row(name: str, trained: Any) -> list[str]:
    found = trained.evaluation.metrics
    ranked = [f"{found[f'baseline_{b}/auc'].value:.3f}" for b in PURCHASE]
    own = [format(found[m], ".3f") for m in ("auc", "average_precision", "brier", "ece")]
    gain = format(found["baseline_bgnbd/auc_gain"], "+.3f")
    return [name, *facts(trained), *ranked, *own, gain]


def value_row(name: str, trained: Any) -> list[str]:
    found = trained.evaluation.metrics
    ranked = [f"{found[f'baseline_{b}/gini'].value:.3f}" for b in VALUE]
    own = [format(found["gini"], ".3f"), format(found["bias"], ".2f")]
    expected = f"{found['baseline_bgnbd/bias'].value:.2f}"
    return [
        name,
        *facts(trained),
        *ranked,
        *own,
        expected,
        format(found["baseline_bgnbd/gini_gain"], "+.3f"),
    ]


def facts(trained: Any) -> list[str]:
    rows, split = trained.rows, trained.split
    base = f"{rows['test_positives'] / rows['test_rows']:.2f}"
    leaves = f"{trained.parameters['num_leaves']}"
    if trained.parameters.get("logistic_share"):
        leaves += " + logistic"
    return [f"{split.test:%Y-%m-%d}", f"{rows['test_rows']:,}", base, f"{len(split.train)}", leaves]


def table(rows: list[list[str]], *heads: str) -> str:
    shared = ("data", "test", "customers", "buy", "snapshots", "leaves")
    lines = [[*shared, *heads], ["---"] + ["---:"] * (len(shared) + len(heads) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}")
    asked = parser.parse_args().cases or list(CASES)
    purchases, values, verdicts = [], [], []
    for name in asked:
        for spec, trained in judged(CASES[name]):
            label = f"{CASES[name].data.replace('_', ' ')}, {spec.label.within_days} days"
            rows, row = (values, value_row) if spec.task == "value" else (purchases, purchase_row)
            rows.append(row(label, trained))
            verdicts.append(f"- {label} as of {trained.split.test:%Y-%m-%d}: {trained.verdict}")
    print("AUC of who buys:\n")
    own = ("**model**", "average precision", "Brier", "ECE", "gain over BG/NBD")
    print(table(purchases, *PURCHASE, *own))
    print("\nNormalized Gini of what they spend:\n")
    heads = ("**model**", "predicted/actual", "BG/NBD's", "gain over BG/NBD")
    print(table(values, *VALUE, *heads))
    print("\nVerdicts of the gate:\n")
    print("\n".join(verdicts))


if __name__ == "__main__":
    main()
