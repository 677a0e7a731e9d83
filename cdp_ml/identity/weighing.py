"""How much speaks for two records being one person: Splink's match weights, in bits.

Pairs that share what other people share too, such as those of a household, get the lesser of two
weights: that of the model of all pairs, and that of the model of their like.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cdp_ml.errors import LinkageError
from cdp_ml.identity.comparisons import KINDS, Level
from cdp_ml.identity.dependence import Context, context_bits
from cdp_ml.identity.model import Model

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

CONTRADICTED = -12.0
"""Weight (bits) of pairs whose hard facts contradict: another given name and another birth date."""
HARD_FACTS = ("given_name", "birth_date")


def predict(db: DuckDBPyConnection, model: Model, explaining: bool = False) -> str:
    """Weigh table `candidates` with the model of all pairs.

    Args:
        db: with tables `people` and `candidates`.
        model: its settings.
        explaining: also tell what each comparison contributes, `mw_`.

    Returns:
        The name of a view: unique_id_l, unique_id_r, match_weight, match_probability and by
        comparison the level found, `gamma_`. It reads the tables as they are whenever it is asked.
    """
    with quiet_splink():
        linker = make_linker(db, model, explaining)
        table = linker._db_api.register("candidates")
        blocked = linker.table_management.register_blocked_pairs_for_predict(table)
        # Splink would first copy the records that occur; `people` holds no others.
        blocked.metadata["registered_for_predict"] = False
        predicted = linker.inference.predict(warning_mode="never")
    return str(predicted.physical_name)


def make_linker(db: DuckDBPyConnection, model: Model, explaining: bool = False) -> Any:
    """A Splink linker on table `people`; one each, because its cache would serve stale tables.

    Args:
        db: with table `people`.
        model: its settings and term frequencies.
        explaining: keep what each comparison contributes.
    """
    from splink import Linker

    api = _views(db)
    # Training has checked the settings, which takes as long as all else here.
    settings = splink_settings(model, explaining)
    linker = Linker(api.register("people"), settings, validate_settings=False, log_level=None)
    for field in _terms(model):
        # The frequencies are columns of `people`; Splink asks for the tables nevertheless.
        unused = f"SELECT {field}, 0::DOUBLE AS tf_{field} FROM people LIMIT 0"
        db.execute(f"CREATE OR REPLACE TABLE tf_of_{field} AS {unused}")
        linker.table_management.register_term_frequency_lookup(
            api.register(f"tf_of_{field}"), field
        )
    return linker


def _views(db: DuckDBPyConnection) -> Any:
    """Splink's DuckDB back end, with views: it would store all compared values of all pairs."""
    from splink import DuckDBAPI

    class Views(DuckDBAPI):  # type: ignore[misc]
        def _execute_sql_against_backend(self, final_sql: str) -> Any:
            return super()._execute_sql_against_backend(
                final_sql.replace("CREATE TABLE", "CREATE VIEW", 1)
            )

    return Views(db)


def splink_settings(model: Model, explaining: bool = False) -> dict[str, Any]:
    """The trained settings with the term frequencies that the specification asks for."""
    settings = copy.deepcopy(model.settings)
    settings["retain_matching_columns"] = True  # without them Splink drops the levels found
    settings["retain_intermediate_calculation_columns"] = explaining
    for comparison in settings["comparisons"]:
        for _, trained, declared in levels(model, comparison):
            if declared.term in _terms(model):
                trained["tf_adjustment_column"] = declared.term
            if declared.term == "names":
                # Not relative to an exact agreement: names that are swapped have no other level.
                trained["disable_tf_exact_match_detection"] = True
    return settings


def _terms(model: Model) -> set[str]:
    """The columns of `people` with frequencies."""
    names = {"names"} if {"given_name", "surname"} <= set(model.rarest) else set()
    return set(model.rarest) | names


@contextmanager
def quiet_splink() -> Iterator[None]:
    """Keep Splink's progress reports out of our log; what matters we say ourselves."""
    splink = logging.getLogger("splink")
    before = splink.level
    splink.setLevel(logging.ERROR)
    try:
        yield
    finally:
        splink.setLevel(before)


def levels(model: Model, comparison: dict[str, Any]) -> Iterator[tuple[int, Any, Level]]:
    """A comparison's levels: Splink's number (the best is highest), as trained, as declared.

    Raises:
        LinkageError: if another version of cdp-ml trained the model, with other levels.
    """
    trained = [x for x in comparison["comparison_levels"] if not x.get("is_null_level")]
    declared = KINDS[model.kinds[comparison["output_column_name"]]].levels
    if [x["label_for_charts"] for x in trained] != [x.label for x in declared]:
        raise LinkageError(
            "another version of cdp-ml trained the linkage model; 'cdp-ml refresh' trains it anew"
        )
    return zip(range(len(trained) - 1, -1, -1), trained, declared, strict=True)


def weight(model: Model) -> str:
    """SQL on `predict`'s table: the match weight in bits, all considered."""
    found = "match_weight"
    for name, context in model.contexts.items():
        lesser = f"least({found}, {_context_weight(context)})"
        found = f"CASE WHEN {_is_in(model, name)} THEN {lesser} ELSE {found} END"
    if model.strict:
        found = (
            f"CASE WHEN {contradicts(model)} THEN least({found}, {CONTRADICTED}) ELSE {found} END"
        )
    return found


def contradicts(model: Model) -> str:
    """SQL on `predict`'s table: whether both given name and birth date are different."""
    facts = [f"gamma_{f} = 0" for f in HARD_FACTS if f in model.kinds]
    return " AND ".join(facts) if len(facts) == len(HARD_FACTS) else "false"


def pattern(model: Model) -> str:
    """SQL on `predict`'s table: the levels found, as one number; `evidence` reads it."""
    compared = enumerate(c["output_column_name"] for c in model.settings["comparisons"])
    return " + ".join(f"((gamma_{field} + 1)::BIGINT << {4 * i})" for i, field in compared)


def evidence(model: Model) -> str:
    """SQL on `pattern`: the levels found, such as 'email: exact, surname: similar'."""
    said = []
    for i, comparison in enumerate(model.settings["comparisons"]):
        field = comparison["output_column_name"]
        cases = " ".join(
            f"WHEN {number + 1} THEN '{field}: {declared.label}'"
            for number, _, declared in levels(model, comparison)
        )
        said.append(f"CASE (pattern >> {4 * i}) & 15 {cases} END")
    return f"concat_ws(', ', {', '.join(said)})"


def _is_in(model: Model, context: str) -> str:
    """SQL on `predict`'s table: whether a pair shares what those of a context share."""
    shared = [
        f"gamma_{comparison['output_column_name']} = {number}"
        for comparison in model.settings["comparisons"]
        for number, _, declared in levels(model, comparison)
        if declared.shared_by == context
    ]
    return f"({' OR '.join(shared) or 'false'})"


def _context_weight(context: Mapping[str, Any]) -> str:
    """SQL: the match weight among those of a context."""
    base, fields = context_bits(context)
    terms = [f"{base:.6f}"]
    for field, bits in fields.items():
        numbered = zip(range(len(bits) - 1, -1, -1), bits, strict=True)
        cases = " ".join(f"WHEN {number} THEN {weight:.6f}" for number, weight in numbered)
        terms.append(f"CASE gamma_{field} {cases} ELSE 0 END")
    return " + ".join(terms)


def context_levels(
    db: DuckDBPyConnection, model: Model, context: Context, predicted: str
) -> tuple[dict[str, Any], Any, dict[str, Any]]:
    """The patterns of agreement among the pairs of a context, for `dependence.train_context`.

    Args:
        db: the database.
        model: its comparisons.
        context: the context.
        predicted: the table of `predict` for these pairs.

    Returns:
        By field the levels of each pattern (0 is the best, -1 missing), the pairs of each pattern,
        and by field typical `m` and `u` among strangers.
    """
    trained = {c["output_column_name"]: [*levels(model, c)] for c in model.settings["comparisons"]}
    fields = [f for f in trained if model.kinds[f] in context.kinds]
    top = {f: trained[f][0][0] for f in fields}
    asked = [f"CASE WHEN gamma_{f} < 0 THEN -1 ELSE {top[f]} - gamma_{f} END AS {f}" for f in top]
    found = db.execute(f"""
        SELECT {"".join(f"{a}, " for a in asked)}count(*) AS pairs FROM {predicted}
        WHERE {_is_in(model, context.name)} GROUP BY ALL ORDER BY ALL
    """).fetchnumpy()
    strangers = {f: [x["u_probability"] for _, x, _ in trained[f]] for f in fields}
    typical = {f: [declared.m for _, _, declared in trained[f]] for f in fields}
    start = {f: (typical[f], strangers[f]) for f in fields}
    return {f: found[f] for f in fields}, found["pairs"], start
