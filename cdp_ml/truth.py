"""Evaluation against a known truth; the only module that reads it, and nothing flows back."""

from __future__ import annotations

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
OUTCOME = ("person_id", "as_of", "outcome", "probability")


def evaluate_workspace(workspace: Workspace) -> dict[str, Any]:
    """Compare the published links and models with the truth that cdp.yaml names.

    Returns:
        `identity`: pairwise precision, recall, F1 and counts. `models`: for each propensity whose
        true probabilities are known at its test instant, the AUC out of time, the AUC that the true
        probabilities themselves reach on the same customers (the best attainable), and the share
        of the way from chance to there.

    Raises:
        ConfigError: if cdp.yaml has no `truth`, or its files lack columns.
    """
    from cdp_ml.identity.evaluate import evaluate_linkage

    truth = workspace.settings.truth
    if truth is None:
        raise ConfigError(
            f"{workspace.settings.home / 'cdp.yaml'}: no 'truth'; name a file that tells the true "
            "person of each record: truth: {records: PATH}"
        )
    people = read_records(truth, workspace.settings.home)
    crosswalk = workspace.table("crosswalk")
    current = crosswalk.filter(crosswalk.valid_to.isnull()).to_pyarrow()
    found: dict[str, Any] = {"identity": evaluate_linkage(current, people, workspace.con)}
    if truth.outcomes is not None:
        outcomes = _read(workspace.settings.home / truth.outcomes, OUTCOME, {}).to_pandas()
        persons = _person_of_customer(current.to_pandas(), people.to_pandas())
        found["models"] = _evaluate_models(workspace, outcomes, persons)
    return found


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


def _read(path: Path, columns: tuple[str, ...], fields: dict[str, str]) -> pa.Table:
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
    return table.select([fields.get(c, c) for c in columns]).rename_columns(list(columns))


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
    from cdp_ml.learn.evaluate import auc_against_truth

    compared = auc_against_truth(known["label"], known["score"], known["probability"])
    return {"customers": len(known), **compared}
