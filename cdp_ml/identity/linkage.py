"""Which records are one person: Splink weighs the pairs, deterministic identifiers join for sure.

The model is that of Fellegi and Sunter (1969), trained without labels as Splink does it: a first
prior from deterministic rules, `u` from random pairs, `m` by expectation maximisation within
several blocking rules. Four things are added:

- The prior is then taken from the shares of matches that the training found among the pairs that
  agree on a field (the deterministic rules see too few where records have many errors).
- `u` is corrected for the true matches among the random pairs. In small data they are most of the
  agreements on an e-mail or a birth date, and would make these look common.
- A second model, trained among those who share surname and postcode, weighs what tells members of
  a household apart. Pairs that share address, phone or e-mail get the lesser of the two weights.
- Clusters come from average linkage (`cdp_ml.identity.clustering`), not from chaining.

All records are in one table, under integer ids and with their source: Splink's `link_and_dedupe`,
or `dedupe_only` where there is but one source.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cdp_ml.config import IdentitySpec
from cdp_ml.engine import private_connection
from cdp_ml.errors import LinkageError, nearest
from cdp_ml.identity.clustering import cluster_pairs, components, weakest_links
from cdp_ml.identity.comparisons import KINDS, Kind, splink_comparison, usable
from cdp_ml.identity.households import household_bits, train_household

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa
    from duckdb import DuckDBPyConnection
    from ibis.backends.sql import SQLBackend
    from ibis.expr.types import Table

log = logging.getLogger(__name__)

FIELDS = ("given_name", "surname", "email", "phone", "birth_date", "street", "postcode", "city")
NOBODY = 20
"""An e-mail or phone number on more records than this identifies nobody: info@…, 000000."""
RANDOM_PAIRS = 2e6
TRAINING_PAIRS = 1e6
LEAST_TRAINING_PAIRS = 30
LEAST_RECORDS_FOR_TERMS = 200
"""Among fewer records the frequency of a name says nothing about how common it is."""
STRANGERS = 100
"""Pairs of strangers who differ in everything, added to the random pairs: in tiny data all may be
one person, and what all share must not look common."""
LEAST_M = 0.001
"""No disagreement is impossible where people type."""
LEAST_U = 0.05
"""What remains at least of an observed `u`, however many of the agreements are true matches."""
LEAST_WEIGHT = -30.0
"""Pairs below this match weight (bits) are not kept."""

_NODES = f"""
CREATE TABLE nodes AS
WITH shared AS (
    {{shared}}
), keyed AS (
    SELECT source || ':' || source_record_id AS record, source, source_record_id,
        {", ".join(f"nullif({f}, '') AS {f}" if f != "birth_date" else f for f in FIELDS)}
    FROM records
)
SELECT (row_number() OVER (ORDER BY record) - 1)::BIGINT AS unique_id, record, source,
    source_record_id, given_name, surname, birth_date, street, postcode, city,
    CASE WHEN email NOT IN (SELECT value FROM shared) THEN email END AS email,
    CASE WHEN phone NOT IN (SELECT value FROM shared) THEN phone END AS phone,
    postcode || '|' || surname AS household
FROM keyed ORDER BY unique_id
"""
_SHARED = "SELECT {0} AS value FROM records WHERE {0} <> '' GROUP BY 1 HAVING count(*) > {1}"
# Two given names are aliases if people of one surname and birth date, or one e-mail, bear them
# more often than chance pairs of differing names would: pointwise mutual information.
_ALIASES = """
CREATE TABLE alias AS
WITH same AS (
    SELECT given_name, 'b' || surname || birth_date::VARCHAR AS who FROM nodes
    UNION SELECT given_name, 'e' || email FROM nodes
), known AS (
    SELECT * FROM same WHERE given_name IS NOT NULL AND who IS NOT NULL
    QUALIFY count(*) OVER (PARTITION BY who) BETWEEN 2 AND 6
), pairs AS (
    SELECT l.given_name AS one, r.given_name AS other, count(*) AS seen
    FROM known l JOIN known r ON l.who = r.who AND l.given_name <> r.given_name GROUP BY ALL
), rated AS (
    SELECT one, other, seen, seen * sum(seen) OVER ()
        / (sum(seen) OVER (PARTITION BY one) * sum(seen) OVER (PARTITION BY other)) AS lift
    FROM pairs
)
SELECT one AS given_name, list(other ORDER BY other) AS aliases
FROM rated WHERE seen >= 3 AND lift >= 10 GROUP BY ALL
"""
_PEOPLE = """
CREATE TABLE people AS SELECT n.*, coalesce(a.aliases, []) AS aliases
FROM nodes n LEFT JOIN alias a USING (given_name) ORDER BY unique_id
"""


@dataclass(frozen=True)
class Linkage:
    """What linking found.

    Attributes:
        edges: table `edges`, the pairs at or above the threshold.
        clusters: source, source_record_id, cluster (number), confidence (probability of the
            weakest link that the cluster needs; 1 for single records).
        model: Splink's settings with the trained parameters; under `household` those of the
            second model. Empty if there was nothing to compare.
    """

    edges: pa.Table
    clusters: pa.Table
    model: dict[str, Any]


def link(
    records: Table | pa.Table, identifiers: Table | pa.Table, spec: IdentitySpec, con: SQLBackend
) -> Linkage:
    """Link the records of all sources into clusters, one a person.

    The same input gives the same output: ids follow the records' keys, sampling is seeded, and
    trained parameters are rounded, so that the order of summation does not show.

    Args:
        records: table `records`.
        identifiers: table `identifiers`.
        spec: models/identity.yaml.
        con: the engine; Splink gets a connection of its own with the same limits.

    Raises:
        LinkageError: if the specification does not fit the records, or a blocking rule would make
            more pairs than `max_pairs`.
    """
    db = private_connection(con)
    keys = ("source", "source_record_id")
    db.register("records", _arrow(records, (*keys, *FIELDS), con))
    db.register("identifiers", _arrow(identifiers, (*keys, "identifier_type", "identifier"), con))
    filled = _prepare(db)
    kinds = usable(spec, filled)
    _note_left_out(spec, kinds)
    rules = _usable_rules(spec.blocking_rules, filled)
    _check_pair_counts(db, rules, spec.max_pairs)
    model = _train(db, spec, kinds, rules, filled) if kinds and rules else {}
    _score(db, spec, model)
    return _clustered(db, spec, model)


def check_specification(spec: IdentitySpec) -> None:
    """Check the names in a specification without any records.

    Raises:
        LinkageError: if a comparison or a rule names what there is not.
    """
    nothing = dict.fromkeys(FIELDS, 0)
    usable(spec, nothing)
    for rules in (spec.blocking_rules, spec.training_rules, spec.prior_rules):
        _usable_rules(rules, nothing)


def _arrow(table: Table | pa.Table, columns: tuple[str, ...], con: SQLBackend) -> pa.Table:
    import pyarrow as pa

    wanted = table.select(list(columns))
    return wanted if isinstance(wanted, pa.Table) else con.to_pyarrow(wanted)


def _prepare(db: DuckDBPyConnection) -> dict[str, int]:
    """Make table `people`, ids in the order of the keys; count the values of each field."""
    shared = " UNION ".join(_SHARED.format(f, NOBODY) for f in ("email", "phone"))
    db.execute(_NODES.format(shared=shared))
    db.execute(_ALIASES)
    db.execute(_PEOPLE)
    asked = ", ".join(f"count({f})" for f in FIELDS)
    counts = db.execute(f"SELECT {asked} FROM people").fetchall()[0]
    return dict(zip(FIELDS, counts, strict=True))


def _note_left_out(spec: IdentitySpec, kinds: Mapping[str, Kind]) -> None:
    if left_out := [c.field for c in spec.comparisons if c.field not in kinds]:
        log.info("identity: nothing to compare in %s", ", ".join(left_out))


def _usable_rules(rules: tuple[str, ...], filled: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    """The rules whose columns have values: their text and their expressions.

    Raises:
        LinkageError: if a rule is not SQL or names an unknown column.
    """
    parsed = {rule: _expressions(rule) for rule in rules}
    return {
        rule: tuple(e for e, _ in parts)
        for rule, parts in parsed.items()
        if all(filled[c] >= 2 for _, columns in parts for c in columns)
    }


def _expressions(rule: str) -> list[tuple[str, set[str]]]:
    """The comma-separated SQL expressions of a rule and the columns that each names."""
    import sqlglot
    from sqlglot import exp

    where = f"models/identity.yaml: rule '{rule}'"
    try:
        parsed = sqlglot.parse_one(f"SELECT {rule}", dialect="duckdb").expressions
    except sqlglot.errors.SqlglotError:
        raise LinkageError(f"{where}: not a list of SQL expressions on a record") from None
    found = [(e.sql("duckdb"), {c.name for c in e.find_all(exp.Column)}) for e in parsed]
    for name in {c for _, columns in found for c in columns} - set(FIELDS):
        raise LinkageError(f"{where}: no field '{name}'; {nearest(name, FIELDS)}")
    return found


def _check_pair_counts(
    db: DuckDBPyConnection, rules: Mapping[str, tuple[str, ...]], most: int
) -> None:
    """Count the pairs of each rule before any is made.

    Raises:
        LinkageError: if a rule makes more than `most`.
    """
    for rule, expressions in rules.items():
        pairs = _count_pairs(db, expressions)
        log.debug("identity: rule '%s' makes %d pairs", rule, pairs)
        if pairs > most:
            raise LinkageError(
                f"models/identity.yaml: blocking_rules: '{rule}' makes {pairs:,} pairs, more than "
                f"max_pairs ({most:,}); add a field to the rule or raise max_pairs"
            )


def _count_pairs(db: DuckDBPyConnection, expressions: tuple[str, ...]) -> int:
    known = " AND ".join(f"({e}) IS NOT NULL" for e in expressions)
    sizes = f"SELECT count(*) AS n FROM people WHERE {known} GROUP BY {', '.join(expressions)}"
    found = db.execute(f"SELECT coalesce(sum(n * (n - 1) // 2), 0) FROM ({sizes})").fetchall()
    return int(found[0][0])


# ---- training -----------------------------------------------------------------------------------


def _train(
    db: DuckDBPyConnection,
    spec: IdentitySpec,
    kinds: Mapping[str, Kind],
    rules: Mapping[str, tuple[str, ...]],
    filled: Mapping[str, int],
) -> dict[str, Any]:
    """Train both models; returns Splink's settings, the second model's under `household`."""
    many = _count_rows(db, "people") >= LEAST_RECORDS_FOR_TERMS
    frequent = {c.field: c.term_frequency and many for c in spec.comparisons}
    comparisons = [splink_comparison(f, kind, frequent[f]) for f, kind in kinds.items()]
    prior = _prior(db, spec, filled)
    with _quiet_splink():
        linker = _linker(db, comparisons, rules, prior)
        _sample_u(db, linker, spec.seed)
        shares = _maximise(db, linker, _teaching_rules(spec, kinds, filled))
        model: dict[str, Any] = linker.misc.save_model_to_json()
        model["kinds"] = {c.field: c.kind for c in spec.comparisons if c.field in kinds}
        singles = {f: kind.typical_share for f, kind in kinds.items() if kind.typical_share}
        singles |= {k[0]: share for k, share in shares.items() if len(k) == 1}
        prior = _prior_by_training(db, model, singles, filled) or prior
        model["probability_two_random_records_match"] = prior
        _correct_u(db, model, prior, singles)
    return model


@contextmanager
def _quiet_splink() -> Iterator[None]:
    """Keep Splink's progress reports out of our log; what matters we say ourselves."""
    splink = logging.getLogger("splink")
    before = splink.level
    splink.setLevel(logging.ERROR)
    try:
        yield
    finally:
        splink.setLevel(before)


def _linker(
    db: DuckDBPyConnection,
    comparisons: list[dict[str, Any]],
    rules: Mapping[str, tuple[str, ...]],
    prior: float,
) -> Any:
    """A Splink linker; one `DuckDBAPI` each, because its cache would serve stale tables."""
    from splink import DuckDBAPI, Linker, SettingsCreator, block_on

    sources = db.execute("SELECT count(DISTINCT source) FROM people").fetchall()[0][0]
    settings = SettingsCreator(
        link_type="link_and_dedupe" if sources > 1 else "dedupe_only",
        source_dataset_column_name="source",
        comparisons=comparisons,
        blocking_rules_to_generate_predictions=[block_on(*e) for e in rules.values()],
        probability_two_random_records_match=prior,
        retain_matching_columns=False,
        retain_intermediate_calculation_columns=False,
        additional_columns_to_retain=["household"],
        linker_uid="cdp",
    )
    return Linker(DuckDBAPI(db).register("people"), settings, log_level=None)


def _prior(db: DuckDBPyConnection, spec: IdentitySpec, filled: Mapping[str, int]) -> float:
    """The probability that two random records match, from the pairs that rules find for certain.

    That is Splink's `estimate_probability_two_random_records_match`, with bounds for tiny data.
    """
    records = _count_rows(db, "people")
    total = records * (records - 1) / 2
    rules = _usable_rules(spec.prior_rules, filled).values()
    found = [
        f"SELECT l.unique_id, r.unique_id FROM people l JOIN people r ON l.unique_id < r.unique_id"
        f" AND {' AND '.join(f'l.{c} = r.{c}' for c in rule)}"
        for rule in rules
    ]
    pairs = _count_rows(db, f"({' UNION '.join(found)})") if found else 0
    return _rounded(min(max(pairs / spec.recall, 0.5) / total, 0.5))


def _count_rows(db: DuckDBPyConnection, table: str) -> int:
    return int(db.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0])


def _sample_u(db: DuckDBPyConnection, linker: Any, seed: int) -> None:
    """Estimate `u` from random pairs; in one thread, for only then the seed decides alone."""
    threads = db.execute("SELECT current_setting('threads')").fetchall()[0][0]
    db.execute("SET threads = 1")
    linker.training.estimate_u_using_random_sampling(max_pairs=RANDOM_PAIRS, seed=seed)
    db.execute(f"SET threads = {threads}")


def _teaching_rules(
    spec: IdentitySpec, kinds: Mapping[str, Kind], filled: Mapping[str, int]
) -> list[tuple[str, ...]]:
    """The training rules that leave a comparison to be learned."""
    return [
        expressions
        for rule, expressions in _usable_rules(spec.training_rules, filled).items()
        if any(
            not any(kind.uses(c) for _, columns in _expressions(rule) for c in columns)
            for kind in kinds.values()
        )
    ]


def _maximise(
    db: DuckDBPyConnection, linker: Any, rules: list[tuple[str, ...]]
) -> dict[tuple[str, ...], float]:
    """Estimate `m` within each rule; returns the share of matches found among its pairs."""
    from splink import block_on

    shares = {}
    for expressions in rules:
        # Splink drops comparisons from its settings for good when a session finds no pairs.
        if _count_pairs(db, expressions) < LEAST_TRAINING_PAIRS:
            log.info("identity: too few pairs share %s to learn from", ", ".join(expressions))
            continue
        session = linker.training.estimate_parameters_using_expectation_maximisation(
            block_on(*expressions),
            estimate_without_term_frequencies=True,
            max_pairs=TRAINING_PAIRS,
            record_sample_proportion=1.0,
        )
        share = session.core_model_settings.probability_two_random_records_match
        shares[expressions] = float(share)
    return shares


def _prior_by_training(
    db: DuckDBPyConnection,
    model: dict[str, Any],
    shares: Mapping[str, float],
    filled: Mapping[str, int],
) -> float | None:
    """The prior as the training sees it; None if it knows no share of matches for any field.

    Of all matches, those whose records both have the field (`filled`) and agree on it (`m`) are
    the share of matches found among the pairs that agree on it; the median of such fields counts.
    """
    from statistics import median

    everyone = _count_pairs(db, ("true",))
    records = _count_rows(db, "people")
    found = [
        shares[field] * pairs / (m * (filled[field] / records) ** 2 * everyone)
        for field, m in _exact_m(model).items()
        if field in shares and (pairs := _count_pairs(db, (field,)))
    ]
    return _rounded(min(max(median(found), 0.5 / everyone), 0.5)) if found else None


def _exact_m(model: dict[str, Any]) -> dict[str, float]:
    """`m` of exact agreement by field, as trained or else as declared."""
    best = {c["output_column_name"]: c["comparison_levels"][1] for c in model["comparisons"]}
    declared = {f: KINDS[kind].levels[0].m for f, kind in model["kinds"].items()}
    return {f: best[f].get("m_probability", m) for f, m in declared.items()}


def _correct_u(
    db: DuckDBPyConnection, model: dict[str, Any], prior: float, shares: Mapping[str, float]
) -> None:
    """Take the true matches out of what random pairs showed, fill what was not seen, and round.

    A random pair agrees with probability `p = prior * m + (1 - prior) * u`. Where expectation
    maximisation saw all pairs that share a field, it has told the share of matches among them;
    `u` of an exact agreement then follows from that and from the exact count of these pairs.
    """
    everyone = max(_count_pairs(db, ("true",)), 1)
    for comparison in model["comparisons"]:
        field = comparison["output_column_name"]
        levels = _complete(comparison, KINDS[model["kinds"][field]], everyone)
        for level in levels:
            p, m = level["u_probability"], level["m_probability"]
            level["u_probability"] = _rounded(max(p - prior * m, LEAST_U * p) / (1 - prior))
        if field in shares:
            agreeing = max(_count_pairs(db, (field,)), 1) / (everyone + STRANGERS)
            unlike = max(1 - shares[field], LEAST_U)
            levels[0]["u_probability"] = _rounded(min(agreeing * unlike / (1 - prior), 1.0))


def _complete(comparison: dict[str, Any], kind: Kind, pairs: int) -> list[dict[str, Any]]:
    """The levels, with what was never observed filled in and nothing held to be impossible."""
    levels = [x for x in comparison["comparison_levels"] if not x.get("is_null_level")]
    if unseen := [x["label_for_charts"] for x in levels if "u_probability" not in x]:
        log.info("identity: %s: never observed: %s", comparison["output_column_name"], unseen)
    drawn = min(pairs, RANDOM_PAIRS)
    for level, known in zip(levels, kind.levels, strict=True):
        added = STRANGERS if level is levels[-1] else 0.5
        u = (level.get("u_probability", 0.0) * drawn + added) / (drawn + STRANGERS)
        level["u_probability"] = min(u, 1.0)
        level["m_probability"] = _rounded(max(level.get("m_probability", known.m), LEAST_M))
    return levels


def _rounded(probability: float) -> float:
    """Six digits: sums over threads differ in later ones from run to run."""
    return float(f"{probability:.6g}")


# ---- weighing the pairs -------------------------------------------------------------------------


def _score(db: DuckDBPyConnection, spec: IdentitySpec, model: dict[str, Any]) -> None:
    """Make table `pairs`: one, other (ids), weight (bits), evidence. Trains the second model."""
    if not model:
        db.execute("CREATE TABLE pairs (one BIGINT, other BIGINT, weight DOUBLE, evidence VARCHAR)")
        return
    predicted = _predict(db, model)
    model["household"] = _household(db, model, predicted) if spec.household else None
    db.execute(f"""
        CREATE TABLE pairs AS
        SELECT unique_id_l AS one, unique_id_r AS other, {_evidence(model)} AS evidence,
            CASE WHEN {_share_contact(model)} THEN least(match_weight, {_household_weight(model)})
            ELSE match_weight END AS weight
        FROM {predicted} ORDER BY one, other
    """)


def _predict(db: DuckDBPyConnection, model: dict[str, Any]) -> str:
    """Weigh the blocked pairs with the first model; returns the name of Splink's table."""
    from splink import DuckDBAPI, Linker

    settings = {k: v for k, v in model.items() if k != "kinds"}
    settings["retain_matching_columns"] = True  # without them Splink drops the levels found
    with _quiet_splink():
        linker = Linker(DuckDBAPI(db).register("people"), settings, log_level=None)
        predicted = linker.inference.predict(threshold_match_weight=LEAST_WEIGHT)
    return str(predicted.physical_name)


def _household(db: DuckDBPyConnection, model: dict[str, Any], predicted: str) -> Any:
    """The second model, from the patterns of agreement among those of one surname and postcode."""
    trained = {c["output_column_name"]: [*_levels(model, c)] for c in model["comparisons"]}
    fields = [f for f in trained if KINDS[model["kinds"][f]].household]
    if not fields:
        return None
    top = {f: trained[f][0][0] for f in fields}
    asked = [f"CASE WHEN gamma_{f} < 0 THEN -1 ELSE {top[f]} - gamma_{f} END AS {f}" for f in top]
    found = db.execute(f"""
        SELECT {", ".join(asked)}, count(*) AS pairs FROM {predicted}
        WHERE household_l = household_r GROUP BY ALL ORDER BY ALL
    """).fetchnumpy()
    strangers = {f: [x["u_probability"] for _, x, _ in trained[f]] for f in fields}
    typical = {f: [declared.m for _, _, declared in trained[f]] for f in fields}
    start = {f: (typical[f], strangers[f]) for f in fields}
    return train_household({f: found[f] for f in fields}, found["pairs"], start)


def _levels(model: dict[str, Any], comparison: dict[str, Any]) -> Iterator[tuple[int, Any, Any]]:
    """A comparison's levels: Splink's number (the best is highest), as trained, as declared."""
    trained = [x for x in comparison["comparison_levels"] if not x.get("is_null_level")]
    declared = KINDS[model["kinds"][comparison["output_column_name"]]].levels
    numbers = range(len(trained) - 1, -1, -1)
    return zip(numbers, trained, declared, strict=True)


def _share_contact(model: dict[str, Any]) -> str:
    """SQL: whether two records share address, phone or e-mail."""
    shared = [
        f"gamma_{c['output_column_name']} = {number}"
        for c in model["comparisons"]
        for number, _, declared in _levels(model, c)
        if declared.shared
    ]
    return " OR ".join(shared) or "false"


def _household_weight(model: dict[str, Any]) -> str:
    """SQL: the second model's match weight; the first one's where there is no second."""
    if model["household"] is None:
        return "match_weight"
    home, fields = household_bits(model["household"])
    terms = [f"{home:.6f}"]
    for field, bits in fields.items():
        numbered = zip(range(len(bits) - 1, -1, -1), bits, strict=True)
        cases = " ".join(f"WHEN {number} THEN {weight:.6f}" for number, weight in numbered)
        terms.append(f"CASE gamma_{field} {cases} ELSE 0 END")
    return " + ".join(terms)


def _evidence(model: dict[str, Any]) -> str:
    """SQL: the levels that the comparisons found, such as 'email: exact, surname: similar'."""
    said = []
    for comparison in model["comparisons"]:
        field = comparison["output_column_name"]
        cases = " ".join(
            f"WHEN {number} THEN '{field}: {declared.label}'"
            for number, _, declared in _levels(model, comparison)
        )
        said.append(f"CASE gamma_{field} {cases} END")
    return f"concat_ws(', ', {', '.join(said)})"


# ---- clusters -----------------------------------------------------------------------------------


_CERTAIN = """
CREATE TABLE certain AS
WITH bearers AS (
    SELECT DISTINCT identifier_type, identifier, unique_id
    FROM identifiers JOIN people USING (source, source_record_id)
    WHERE list_contains($types, identifier_type)
       OR (list_contains($types, '*') AND identifier_type IN (SELECT source FROM people))
), grouped AS (
    SELECT *, min(unique_id) OVER same AS one, count(*) OVER same AS bearers
    FROM bearers WINDOW same AS (PARTITION BY identifier_type, identifier)
)
SELECT one, unique_id AS other, min(identifier_type) AS identifier_type
FROM grouped WHERE bearers BETWEEN 2 AND $most AND one <> unique_id
GROUP BY ALL ORDER BY ALL
"""
_EDGES = """
WITH found AS (
    SELECT coalesce(c.one, p.one) AS one, coalesce(c.other, p.other) AS other, weight,
        'same ' || identifier_type || ' identifier' AS certainly, evidence
    FROM (SELECT * FROM pairs WHERE weight >= $bits) p FULL JOIN certain c USING (one, other)
)
SELECT l.record AS record_l, r.record AS record_r,
    CASE WHEN certainly IS NULL THEN 'probabilistic' ELSE 'deterministic' END AS kind,
    weight AS match_weight,
    CASE WHEN certainly IS NULL THEN 1 / (1 + pow(2, -weight)) ELSE 1 END AS match_probability,
    concat_ws('; ', certainly, nullif(evidence, '')) AS evidence
FROM found JOIN people l ON one = l.unique_id JOIN people r ON other = r.unique_id
ORDER BY one, other
"""
_CLUSTERS = """
SELECT source, source_record_id, cluster, confidence
FROM people JOIN clustered USING (unique_id) ORDER BY unique_id
"""


def _clustered(db: DuckDBPyConnection, spec: IdentitySpec, model: dict[str, Any]) -> Linkage:
    bits = math.log2(spec.threshold / (1 - spec.threshold))
    pairs = db.execute("SELECT one, other, weight FROM pairs").fetchnumpy()
    one, other, weight = pairs["one"], pairs["other"], pairs["weight"]
    label = cluster_pairs(_count_rows(db, "people"), one, other, weight, bits)
    db.execute(_CERTAIN, {"types": list(spec.deterministic), "most": spec.max_group})
    label = _join_clusters(db, label, spec.max_group)
    db.register("clustered", _with_confidence(db, label, bits))
    edges = db.sql(_EDGES, params={"bits": bits}).to_arrow_table()
    return Linkage(_as_contract(edges), db.sql(_CLUSTERS).to_arrow_table(), model)


def _as_contract(edges: pa.Table) -> pa.Table:
    from cdp_ml.contracts import arrow_schema

    schema = arrow_schema("edges")
    return edges.select(schema.names).cast(schema)


def _join_clusters(
    db: DuckDBPyConnection, label: npt.NDArray[np.int64], most: int
) -> npt.NDArray[np.int64]:
    """Merge the clusters that a deterministic identifier joins.

    Only now, and at most `most` into one: identifiers that went into the clustering itself would
    chain whole households and more.
    """
    import numpy as np

    certain = db.execute("SELECT one, other FROM certain").fetchnumpy()
    one, other = label[certain["one"]], label[certain["other"]]
    clusters = int(label.max(initial=-1)) + 1
    joined = components(clusters, one, other, np.ones(len(one)), 0.0)
    many = np.bincount(joined, minlength=clusters)[joined] > most
    if many.any():
        log.warning("identity: %d clusters not joined: more than max_group (%d)", many.sum(), most)
    joined = np.where(many, clusters + np.arange(clusters), joined)
    return np.unique(joined[label], return_inverse=True)[1].astype(np.int64)


def _with_confidence(db: DuckDBPyConnection, label: npt.NDArray[np.int64], bits: float) -> pa.Table:
    """unique_id, cluster, confidence."""
    import numpy as np
    import pyarrow as pa

    asked = f"""SELECT one, other, 1 / (1 + pow(2, -weight)) AS probability FROM pairs
        WHERE weight >= {bits} AND (one, other) NOT IN (SELECT (one, other) FROM certain)
        UNION ALL SELECT one, other, 1.0 FROM certain ORDER BY one, other"""
    links = db.execute(asked).fetchnumpy()
    confidence = weakest_links(label, links["one"], links["other"], links["probability"])
    columns = {"unique_id": np.arange(len(label)), "cluster": label}
    return pa.table({**columns, "confidence": confidence[label]})
