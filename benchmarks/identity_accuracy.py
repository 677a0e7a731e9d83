"""How well records are linked into people, beside plain Splink and other tools.

    python benchmarks/identity_accuracy.py [SET ...] [--records N]

The sets: historical_figures, febrl3 (without its soc_sec_id), fake_1000, and households: the
synthetic world, a million records where not told otherwise. The first three are files in the folder
CDP_SHARED_DATA, or else shared/data beside the checkout. Prints a Markdown table for each set:
pairwise precision, recall and F1 with 95% bootstrap intervals, B-cubed F1, and what linking took;
reading and standardizing the records are not in it.

*cdp-ml* is `models/identity.yaml` as it is shipped. *Splink* is the model of its documentation
for historical_figures, and otherwise one made of its comparison library as the documentation
makes them; always the connected components of the pairs at 0.95 or above, its documentation's
threshold. Both learn without labels.

On fake_1000 also an exact join by e-mail, recordlinkage and dedupe. The last two need

    pip install -r benchmarks/requirements.txt

and are left out without. dedupe alone sees labels, five samples of 200 (`identity_peers.py`).
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import duckdb
import identity_peers as peers
import pyarrow as pa
import splink.comparison_library as cl
from splink import DuckDBAPI, Linker, SettingsCreator, block_on

from cdp_ml.config import Engine, IdentitySpec, load_spec
from cdp_ml.contracts import PERSON_FIELDS, arrow_schema
from cdp_ml.engine import connect
from cdp_ml.errors import CdpError
from cdp_ml.identity.evaluate import evaluate_linkage
from cdp_ml.identity.linkage import link
from cdp_ml.standardize import standardize_people
from cdp_ml.synthetic import generate_records

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("CDP_SHARED_DATA", ROOT.parent / "shared" / "data"))
SPEC = load_spec(ROOT / "models" / "identity.yaml", IdentitySpec)
CON = connect(Engine())
KEY = ["source", "source_record_id"]
FOR_SPLINK = ("full_name", "occupation")  # which its documentation compares, and we do not
THRESHOLD = 0.95
RECORDS_PER_PERSON = 2.2


@dataclass(frozen=True)
class Dataset:
    """Standardized records, beside the columns `FOR_SPLINK`, and who they are."""

    records: pa.Table
    identifiers: pa.Table
    truth: pa.Table


Tool = Callable[[Dataset], pa.Table]
"""From records to source, source_record_id, customer_id."""

# ---- the sets -----------------------------------------------------------------------------------

FILES = {
    "historical_figures": """
        SELECT unique_id AS source_record_id, cluster AS person_id, first_name AS given_name,
            surname, dob AS birth_date, postcode_fake AS postcode, birth_place AS city,
            first_name || ' ' || surname AS full_name, occupation
        FROM '{}/historical_figures_50k.parquet'""",
    "febrl3": """
        SELECT trim(rec_id) AS source_record_id, split_part(rec_id, '-', 2) AS person_id,
            given_name, surname, date_of_birth AS birth_date, postcode, suburb AS city,
            concat_ws(' ', trim(street_number), trim(address_1)) AS street
        FROM read_csv('{}/febrl3.csv', all_varchar = true)""",
    "fake_1000": """
        SELECT unique_id AS source_record_id, cluster AS person_id, first_name AS given_name,
            surname, dob AS birth_date, city, email
        FROM read_csv('{}/fake_1000.csv', all_varchar = true)""",
}


def from_file(name: str) -> Dataset:
    """Read a published set as a source of people without times would be."""
    rows = duckdb.sql(f"""
        SELECT 'file' AS source, *, to_timestamp(0) AS event_timestamp,
            to_timestamp(0) AS ingested_at
        FROM ({FILES[name].format(DATA)})""").to_arrow_table()
    for field in set(PERSON_FIELDS) - set(rows.column_names):
        rows = rows.append_column(field, pa.nulls(len(rows), pa.string()))
    records = standardize_people(rows, "GB", CON)
    for name in set(FOR_SPLINK) & set(rows.column_names):
        records = records.append_column(name, rows[name])
    truth = rows.select([*KEY, "person_id"])
    return Dataset(records, arrow_schema("identifiers").empty_table(), truth)


def households(size: int) -> Dataset:
    records, identifiers, truth = generate_records(round(size / RECORDS_PER_PERSON))
    return Dataset(standardize_people(records, "GB", CON), identifiers, truth)


# ---- the tools ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plain:
    """An ordinary Splink model; a rule is a tuple of expressions that must agree.

    `certain` are the rules that find the share `recall` of the matches, for the prior.
    """

    comparisons: tuple[Any, ...]
    blocking: tuple[tuple[str, ...], ...]
    training: tuple[tuple[str, ...], ...]
    certain: tuple[tuple[str, ...], ...]
    recall: float
    random_pairs: float


PLAIN = {
    "historical_figures": Plain(
        comparisons=(
            cl.ForenameSurnameComparison(
                "given_name_raw", "surname_raw", forename_surname_concat_col_name="full_name"
            ),
            cl.DateOfBirthComparison("birth_date_raw", input_is_string=True),
            cl.PostcodeComparison("postcode_raw"),
            cl.ExactMatch("city_raw").configure(term_frequency_adjustments=True),
            cl.ExactMatch("occupation").configure(term_frequency_adjustments=True),
        ),
        blocking=(
            ("substr(given_name_raw, 1, 3)", "substr(surname_raw, 1, 4)"),
            ("surname_raw", "birth_date_raw"),
            ("given_name_raw", "birth_date_raw"),
            ("postcode_raw", "given_name_raw"),
            ("postcode_raw", "surname_raw"),
            ("birth_date_raw", "city_raw"),
            ("substr(postcode_raw, 1, 3)", "birth_date_raw"),
            ("substr(postcode_raw, 1, 3)", "given_name_raw"),
            ("substr(postcode_raw, 1, 3)", "surname_raw"),
            ("substr(given_name_raw, 1, 2)", "substr(surname_raw, 1, 2)",
             "substr(birth_date_raw, 1, 4)"),
        ),
        training=(("given_name_raw", "surname_raw"), ("birth_date_raw",)),
        certain=(
            ("given_name_raw", "surname_raw", "birth_date_raw"),
            ("substr(given_name_raw, 1, 2)", "surname_raw", "substr(postcode_raw, 1, 2)"),
            ("birth_date_raw", "postcode_raw"),
        ),
        recall=0.6,
        random_pairs=1e7,
    ),
    "febrl3": Plain(
        comparisons=(
            cl.NameComparison("given_name"),
            cl.NameComparison("surname"),
            cl.DateOfBirthComparison("birth_date", input_is_string=False),
            cl.JaroWinklerAtThresholds("street", [0.9]),
            cl.ExactMatch("postcode").configure(term_frequency_adjustments=True),
            cl.ExactMatch("city").configure(term_frequency_adjustments=True),
        ),
        blocking=(("given_name",), ("surname",), ("birth_date",), ("postcode",)),
        training=(("birth_date",), ("postcode",)),
        certain=(("given_name", "surname", "birth_date"),),
        recall=0.5,
        random_pairs=2e6,
    ),
    "fake_1000": Plain(
        comparisons=(
            cl.NameComparison("given_name"),
            cl.NameComparison("surname"),
            cl.DateOfBirthComparison("birth_date", input_is_string=False),
            cl.ExactMatch("city").configure(term_frequency_adjustments=True),
            cl.EmailComparison("email"),
        ),
        blocking=(("given_name", "city"), ("surname",), ("birth_date",), ("email",)),
        training=(("given_name", "surname"), ("birth_date",)),
        certain=(("given_name", "birth_date"), ("given_name", "surname"), ("email",)),
        recall=0.7,
        random_pairs=2e6,
    ),
    "households": Plain(
        comparisons=(
            cl.NameComparison("given_name"),
            cl.NameComparison("surname"),
            cl.DateOfBirthComparison("birth_date", input_is_string=False),
            cl.EmailComparison("email"),
            cl.ExactMatch("phone").configure(term_frequency_adjustments=True),
            # Not the street: it says the postcode over again, and whole families were merged.
            cl.PostcodeComparison("postcode_raw"),
        ),
        blocking=(
            ("email",), ("phone",), ("surname", "birth_date"), ("given_name", "birth_date"),
            ("surname", "postcode"), ("given_name", "postcode"),
        ),
        training=(("given_name", "surname"), ("birth_date",)),
        certain=(
            ("given_name", "surname", "birth_date"), ("given_name", "email"),
            ("given_name", "phone"),
        ),
        recall=0.7,
        random_pairs=2e6,
    ),
}  # fmt: skip


def ours(data: Dataset) -> pa.Table:
    clusters = link(data.records, data.identifiers, SPEC, CON).clusters
    return labeled(clusters, clusters["cluster"])


def plain_splink(model: Plain, data: Dataset) -> pa.Table:
    people = data.records.append_column("unique_id", pa.array(range(len(data.records))))
    settings = SettingsCreator(
        link_type="dedupe_only",
        comparisons=list(model.comparisons),
        blocking_rules_to_generate_predictions=[block_on(*rule) for rule in model.blocking],
    )
    linker = Linker(DuckDBAPI().register(people), settings, log_level="ERROR")
    train_splink(linker.training, model)
    predicted = linker.inference.predict(threshold_match_probability=THRESHOLD)
    clusters = linker.clustering.cluster_pairwise_predictions_at_threshold(
        predicted, threshold_match_probability=THRESHOLD
    ).as_pyarrow_table()
    return labeled(clusters, clusters["cluster_id"])


def train_splink(training: Any, model: Plain) -> None:
    certain = [block_on(*rule) for rule in model.certain]
    training.estimate_probability_two_random_records_match(certain, recall=model.recall)
    training.estimate_u_using_random_sampling(max_pairs=model.random_pairs, seed=1)
    for rule in model.training:
        training.estimate_parameters_using_expectation_maximisation(
            block_on(*rule), estimate_without_term_frequencies=True, max_pairs=1e6
        )


def with_pandas(tool: Callable[..., Any], data: Dataset, sees_labels: bool = False) -> pa.Table:
    """Run a tool of `identity_peers`; whatever is missing is None, and a date is text."""
    people = data.records.to_pandas().astype({"birth_date": str})
    people = people.where(people.notna() & (people != "None"), None)
    labels = [data.truth["person_id"].to_pandas()] if sees_labels else []
    return labeled(data.records, pa.array(tool(people, *labels)))


def labeled(records: pa.Table, labels: Any) -> pa.Table:
    return records.select(KEY).append_column("customer_id", labels)


def tools(name: str) -> Iterator[tuple[str, Tool]]:
    """The tools that are compared on a set."""
    yield "cdp-ml", ours
    yield "Splink", partial(plain_splink, PLAIN[name])
    if name == "fake_1000":
        yield from other_tools()


def other_tools() -> Iterator[tuple[str, Tool]]:
    yield "same e-mail", partial(with_pandas, peers.by_email)
    if not (find_spec("recordlinkage") and find_spec("dedupe")):
        yield "recordlinkage, dedupe", not_installed
        return
    yield "recordlinkage", partial(with_pandas, peers.by_ecm)
    for seed in range(1, 6):
        tool = partial(peers.by_dedupe, seed=seed)
        yield f"dedupe, labels {seed}", partial(with_pandas, tool, sees_labels=True)


def not_installed(_: Dataset) -> pa.Table:
    raise CdpError("not installed: pip install -r benchmarks/requirements.txt")


# ---- the table ----------------------------------------------------------------------------------


def measured(tool: Tool, data: Dataset) -> list[str]:
    """The cells of a row."""
    wall, cpu = time.perf_counter(), time.process_time()
    clusters = tool(data)
    cost = [f"{time.process_time() - cpu:,.1f}", f"{time.perf_counter() - wall:,.1f}"]
    found = evaluate_linkage(clusters, data.truth, CON)
    ratios = [
        "{:.3f} ({:.3f} to {:.3f})".format(
            *(found[f"{ratio}{end}"] for end in ("", "_low", "_high"))
        )
        for ratio in ("precision", "recall", "f1")
    ]
    return [*ratios, f"{found['b3_f1']:.3f}", *cost]


def row(tool: Tool, data: Dataset) -> list[str]:
    """The cells of a tool, or why there are none."""
    try:
        return measured(tool, data)
    except CdpError as error:
        return [str(error)]


def compare(name: str, data: Dataset) -> None:
    """Print the table of a set."""
    people = len(data.truth["person_id"].unique())
    print(f"\n{name}: {len(data.records):,} records of {people:,} people\n")
    print("| tool | precision | recall | F1 | B³ F1 | CPU s | s |\n|---|---|---|---|---|---:|---:|")
    for tool, run in tools(name):
        print(f"| {' | '.join([tool, *row(run, data)])} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"of {', '.join(PLAIN)}")
    parser.add_argument("--records", type=int, default=1_000_000, help="of households")
    asked = parser.parse_args()
    if unknown := set(asked.sets) - set(PLAIN):
        parser.error(f"no set {', '.join(unknown)}; there are {', '.join(PLAIN)}")
    for name in asked.sets or PLAIN:
        if name == "households":
            compare(name, households(asked.records))
        elif DATA.is_dir():
            compare(name, from_file(name))
        else:
            print(f"{name}: no public data sets at {DATA}; set CDP_SHARED_DATA to their folder")


if __name__ == "__main__":
    main()
