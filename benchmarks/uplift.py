"""Uplift models beside targeting by propensity and a rule of one feature.

    python benchmarks/uplift.py [--people N | --null N]

On Hillstrom's e-mail challenge (in the folder CDP_SHARED_DATA, or else shared/data beside the
checkout): who visits the shop within two weeks because of the e-mail for women, or for men. Each
customer is scored by models that have not seen her, in twice five folds. Then on a synthetic world
of N people, whose true effects are known: the correlation of estimated and true uplift.

With --null instead: how often the gate promotes a model of N campaigns of 3,000 customers that have
no effect on anybody.

Prints Markdown tables with bootstrap intervals over customers. *Qini* is normalized by that of
a perfect ranking, *AUUC* by the number of customers; *lead* is the Qini above that of targeting by
propensity on the same draws.
"""

import argparse
import os
import tempfile
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.stats import spearmanr

from cdp_ml.learn.uplift_experiment import Experiment, experiment_of
from cdp_ml.learn.uplift_training import Trial, train_uplift
from cdp_ml.synthetic import generate

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("CDP_SHARED_DATA", ROOT.parent / "shared" / "data"))


def hillstrom(arm: str) -> Experiment:
    rows = pd.read_csv(DATA / "hillstrom.csv")
    rows = rows[rows.segment.isin([arm, "No E-Mail"])]
    names = ["recency", "history", "mens", "womens", "newbie"]
    x = rows[names].join(pd.get_dummies(rows[["zip_code", "channel"]]))
    treated, y = (rows.segment == arm).to_numpy(float), rows.visit.to_numpy(float)
    return Experiment(x.to_numpy(float), treated, y, tuple(x.columns))


WORLD = """
    WITH who AS (SELECT source, source_record_id AS id, person_id AS person
            FROM '{home}/truth/records.parquet'),
        orders AS (
            SELECT person, order_id, ordered_at::TIMESTAMP AS day, quantity * unit_price AS spend,
                discount FROM read_json('{home}/shop/order_lines.jsonl') JOIN who
                ON source = 'shop' AND id = account_id
            UNION ALL
            SELECT person, receipt_no, strptime(time, '%d/%m/%Y %H:%M'), qty * price, NULL
            FROM read_csv('{home}/pos/receipts.csv', delim = ';') JOIN who
                ON source = 'pos' AND id = card_no),
        arms AS (SELECT person, arm, "at"::TIMESTAMP AS start
            FROM read_csv('{home}/crm/exposures.csv') JOIN who ON source = 'crm' AND id = crm_id),
        known AS (
            SELECT person, count(DISTINCT order_id) AS orders, sum(spend) AS spend,
                count(DISTINCT order_id) FILTER (day >= start - INTERVAL 365 DAY) AS orders_365d,
                count(DISTINCT order_id) FILTER (day >= start - INTERVAL 90 DAY) AS orders_90d,
                date_diff('hour', max(day), max(start)) / 24 AS recency,
                date_diff('hour', min(day), max(start)) / 24 AS tenure,
                avg(discount) AS discount, avg((discount > 0)::INT) AS discounted
            FROM orders JOIN arms USING (person) WHERE day < start GROUP BY person),
        later AS (SELECT DISTINCT person FROM orders JOIN arms USING (person)
            WHERE day >= start AND day < start + INTERVAL 30 DAY)
    SELECT lpad(arms.person::TEXT, 9, '0') AS customer_id, arm, start AS event_timestamp,
        (later.person IS NOT NULL)::DOUBLE AS label, true_effect, known.* EXCLUDE (person)
    FROM arms LEFT JOIN known USING (person) LEFT JOIN later ON later.person = arms.person
        JOIN '{home}/truth/uplift.parquet' truth ON truth.person_id = arms.person
    ORDER BY customer_id"""


def world(people: int) -> tuple[pa.Table, np.ndarray]:
    """The spring campaign's customers, with what their orders told before, and their true effect.

    Who is behind a record is taken from the truth: this is about uplift, not about linking.
    """
    with tempfile.TemporaryDirectory() as home:
        generate(Path(home), people)
        found = duckdb.sql(WORLD.format(home=home)).to_arrow_table()
    return found.drop(["true_effect"]), found["true_effect"].to_numpy()


def show_truth(people: int) -> None:
    frame, truth = world(people)
    key = ("customer_id", "arm", "event_timestamp", "label")
    features = tuple(n for n in frame.column_names if n not in key)
    trial = train_uplift(experiment_of(frame, features, "treatment", "spring"), {}, "spring")
    show(f"Synthetic world of {people:,} people, purchase within 30 days", trial)
    random, rows = np.random.default_rng(1), len(truth)
    draws = [np.arange(rows), *(random.integers(0, rows, rows) for _ in range(200))]
    print("\n| | Spearman correlation with the true effect |\n|---|---:|")
    for kind, scores in trial.scores.items():
        found = [spearmanr(scores[0][i], truth[i]).statistic for i in draws]
        low, high = np.quantile(found[1:], [0.025, 0.975])
        print(f"| {kind} | {found[0]:.3f} [{low:.3f}, {high:.3f}] |", flush=True)


def show(title: str, trial: Trial) -> None:
    metrics, kinds = trial.evaluation.metrics, list(trial.scores)
    print(f"\n**{title}**: {trial.evaluation.verdict}\n")
    print("| | Qini | AUUC | uplift in the top decile |\n|---|---:|---:|---:|")
    for kind in kinds:
        prefix = "" if f"baseline_{kind}/qini" not in metrics else f"baseline_{kind}/"
        cells = (str(metrics[prefix + m]) for m in ("qini", "auuc", "uplift_top_decile"))
        print(f"| {kind} | {' | '.join(cells)} |")
    print(f"\nAverage effect {metrics['average_effect']}; AUC of telling the arms apart "
          f"{metrics['balance_auc']}.", flush=True)  # fmt: skip


def show_null(campaigns: int) -> None:
    """Print how often intervals lie above 0 and models are promoted without any effect."""
    above = {"Qini above 0": 0, "lead over propensity above 0": 0, "promoted": 0}
    for seed in range(campaigns):
        random = np.random.default_rng(seed)
        x, treated = random.normal(size=(3_000, 6)), random.integers(0, 2, 3_000).astype(float)
        y = (random.random(3_000) < 1 / (1 + np.exp(1.2 - x[:, 0]))).astype(float)
        found = train_uplift(Experiment(x, treated, y, tuple("abcdef")), {}, "null").evaluation
        above["Qini above 0"] += found.metrics["qini"].low > 0
        above["lead over propensity above 0"] += found.metrics["qini_lead_over_propensity"].low > 0
        above["promoted"] += found.promoted
    print(f"| of {campaigns} campaigns without effect | |\n|---|---:|")
    for what, number in above.items():
        print(f"| {what} | {number} |")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--people", type=int, default=50_000)
    parser.add_argument("--null", type=int)
    asked = parser.parse_args()
    if asked.null:
        show_null(asked.null)
        return
    people = asked.people
    for arm in ("Womens E-Mail", "Mens E-Mail"):
        show(arm, train_uplift(hillstrom(arm), {}, arm.lower()))
    show_truth(people)


if __name__ == "__main__":
    main()
