"""Evaluation against a known truth; the only module that reads it, and nothing flows back."""

from __future__ import annotations

import csv
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdp_ml.config import Truth
from cdp_ml.errors import ConfigError, nearest
from cdp_ml.lake import model_key
from cdp_ml.workspace import Workspace, labeled_test_frame

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

RECORD = ("source", "source_record_id", "person_id")
LABEL = ("record_l", "record_r", "decision")
OUTCOME = ("person_id", "as_of", "outcome", "probability")
OBSERVABLE = "observable"
"""The column of outcomes, if there is one, with what could be known of their probability."""


def evaluate_workspace(
    workspace: Workspace, labels: Path | None = None, out: Path | None = None
) -> dict[str, Any]:
    """Compare the published links and models with the truth that cdp.yaml names, or with labels.

    Args:
        workspace: the workspace.
        labels: CSV of record_l, record_r, decision ('same', 'different', or nothing), such as the
            review queue with its decisions. Without a truth, all there is.
        out: folder for charts of the links by threshold; made if absent.

    Returns:
        `identity`: pairwise and B-cubed precision, recall, F1 and counts; `sources`: the pairwise
        ones by pair of sources; `thresholds` and `match_weights`: what other thresholds would give,
        if the linkage model is there, and `threshold`, the one in use. `models`: for each
        propensity whose true probabilities are known at its test instant, the AUC out of time; the
        AUC of an observer who knows all but what was hidden until then, the best attainable, if the
        truth tells it; that of the true probabilities themselves, which know also what nobody
        could; of both, the share of the way from chance to there; and the expected calibration
        error.
        `labels`: how the links agree with people's decisions. `charts`: the files written.

    Raises:
        ConfigError: if there is nothing to compare with, or a file lacks columns.
    """
    truth = workspace.settings.truth
    if truth is None and (labels is None or out is not None):
        raise ConfigError(
            f"{workspace.settings.home / 'cdp.yaml'}: no 'truth'; name a file that tells the true "
            "person of each record: truth: {records: PATH}; or compare with decisions of people: "
            "cdp-ml evaluate --labels FILE"
        )
    crosswalk = workspace.table("crosswalk")
    current = crosswalk.filter(crosswalk.valid_to.isnull()).to_pyarrow()
    found: dict[str, Any] = {}
    if truth is not None:
        people = read_records(truth, workspace.settings.home)
        found |= _evaluate_links(workspace, current, people)
        if truth.outcomes is not None:
            path = workspace.settings.home / truth.outcomes
            outcomes = _read(path, OUTCOME, {}, (OBSERVABLE,)).to_pandas()
            persons = _person_of_customer(current.to_pandas(), people.to_pandas())
            found["models"] = _evaluate_models(workspace, outcomes, persons)
    if labels is not None:
        found["labels"] = _evaluate_labels(workspace, current, labels)
    if out is not None and "thresholds" in found:
        found["charts"] = _draw(found, out)
    return found


def _evaluate_links(workspace: Workspace, current: pa.Table, people: pa.Table) -> dict[str, Any]:
    from cdp_ml.identity.evaluate import (
        evaluate_linkage,
        evaluate_source_pairs,
        evaluate_thresholds,
    )

    con, known = workspace.con, workspace.identity
    found: dict[str, Any] = {
        "identity": evaluate_linkage(current, people, con),
        "sources": evaluate_source_pairs(current, people, con),
    }
    if known.model is None:
        return found
    thresholds, weights = evaluate_thresholds(
        workspace.table("records"),
        workspace.table("identifiers"),
        known.spec,
        known.model,
        people,
        con,
        overrides=workspace.lake.arrow("overrides"),
    )
    in_use = {"threshold": known.spec.threshold, "thresholds": thresholds}
    return {**found, **in_use, "match_weights": weights.to_pylist()}


def _evaluate_labels(workspace: Workspace, current: pa.Table, path: Path) -> dict[str, Any]:
    from cdp_ml.identity.evaluate import evaluate_labels

    edges, overrides = (workspace.lake.arrow(t) for t in ("edges", "overrides"))
    return evaluate_labels(read_labels(path), current, edges, overrides)


def _draw(found: dict[str, Any], out: Path) -> list[str]:
    import pyarrow as pa

    from cdp_ml.identity.charts import evaluation_figures, save_figures

    weights = pa.Table.from_pylist(found["match_weights"])
    figures = evaluation_figures(found["thresholds"], weights, found["threshold"])
    return [str(path) for path in save_figures(figures, out)]


def read_labels(path: Path) -> pa.Table:
    """What people decided about pairs of records.

    Returns:
        record_l, record_r, decision: 'same' or 'different'; pairs without a decision are left out.

    Raises:
        ConfigError: if the file is absent, lacks a column, or holds another decision.
    """
    import pyarrow as pa

    if not path.is_file():
        raise ConfigError(f"{path}: no such file; 'cdp-ml identity review --out FILE' writes one")
    rows = []
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        reader = csv.DictReader(file)
        for column in LABEL:
            if column not in (reader.fieldnames or ()):
                hint = nearest(column, reader.fieldnames or ())
                raise ConfigError(f"{path}:1: no column '{column}'; {hint}")
        for row in reader:
            said = (row["decision"] or "").strip().lower()
            if said not in ("same", "different", ""):
                line = f"{path}:{reader.line_num}"
                raise ConfigError(f"{line}: decision: write 'same', 'different' or nothing")
            if said:
                rows.append({**{c: row[c] or "" for c in LABEL}, "decision": said})
    return pa.Table.from_pylist(rows, pa.schema([(name, pa.string()) for name in LABEL]))


def read_records(truth: Truth, home: Path) -> pa.Table:
    """The true person of each record.

    Returns:
        source, source_record_id, person_id as text.

    Raises:
        ConfigError: if the file is absent or lacks a column.
    """
    import pyarrow as pa

    wanted = RECORD if truth.source is None else RECORD[1:]
    table = _read(home / truth.records, wanted, truth.fields)
    if truth.source is not None:
        names = pa.array([truth.source] * table.num_rows, pa.string())
        table = table.add_column(0, "source", names)
    return table.cast(pa.schema([(name, pa.string()) for name in RECORD]))


def _read(
    path: Path, columns: tuple[str, ...], fields: dict[str, str], optional: tuple[str, ...] = ()
) -> pa.Table:
    import pyarrow.csv
    import pyarrow.parquet

    if not path.is_file():
        raise ConfigError(f"cdp.yaml: truth: no file {path}")
    read = pyarrow.csv.read_csv if path.suffix == ".csv" else pyarrow.parquet.read_table
    table = read(path)
    for column in columns:
        if fields.get(column, column) not in table.column_names:
            hint = nearest(fields.get(column, column), table.column_names)
            raise ConfigError(f"cdp.yaml: truth: {path.name} has no column '{column}'; {hint}")
    known = (*columns, *(c for c in optional if c in table.column_names))
    return table.select([fields.get(c, c) for c in known]).rename_columns(list(known))


def _person_of_customer(current: pd.DataFrame, people: pd.DataFrame) -> pd.Series[Any]:
    """The person to whom most records of a customer belong."""
    keyed = current.merge(people, on=["source", "source_record_id"])
    counted = keyed.groupby(["customer_id", "person_id"], as_index=False).size()
    ordered = counted.sort_values(["size", "person_id"], ascending=[False, True])
    return ordered.drop_duplicates("customer_id").set_index("customer_id")["person_id"]


def _evaluate_models(
    workspace: Workspace, outcomes: pd.DataFrame, persons: pd.Series[Any]
) -> dict[str, dict[str, float]]:
    found = {}
    for name, spec in workspace.models.items():
        if spec.task != "propensity" or model_key(name) not in workspace.lake.versions:
            continue
        trained_as_of = workspace.run["summary"]["train"]["models"][name]["as_of"]
        frame = labeled_test_frame(workspace, spec, datetime.fromisoformat(trained_as_of))
        frame["score"] = workspace.model(name).predict(frame)
        known = _with_truth(frame, outcomes[outcomes["outcome"] == name], persons)
        if known["label"].nunique() == 2:
            found[name] = _compare(known)
    return found


def _with_truth(
    frame: pd.DataFrame, outcomes: pd.DataFrame, persons: pd.Series[Any]
) -> pd.DataFrame:
    keyed = frame.assign(person_id=frame["customer_id"].map(persons))
    truth = outcomes.assign(person_id=outcomes["person_id"].astype(str))
    renamed = truth.rename(columns={"as_of": "event_timestamp"})
    return keyed.merge(renamed, on=["person_id", "event_timestamp"])


def _compare(known: pd.DataFrame) -> dict[str, float]:
    from cdp_ml.learn.evaluate import auc_against_truth, propensity_metrics

    outcome, score = known["label"].to_numpy(), known["score"].to_numpy()
    found = {"customers": len(known), **auc_against_truth(outcome, score, known["probability"])}
    if OBSERVABLE in known and known[OBSERVABLE].notna().all():
        best = auc_against_truth(outcome, score, known[OBSERVABLE])
        found |= {"auc_observer": best["auc_truth"], "attained_observer": best["attained"]}
    return {**found, "ece": propensity_metrics(outcome, score, draws=1)["ece"].value}
