"""Training without labels, as Splink does it, and what it takes to believe the result.

The model is that of Fellegi and Sunter (1969): a first prior from deterministic rules, `u` from
random pairs, `m` by expectation maximisation within several blocking rules. Three things are added:

- The prior is then taken from the shares of matches that the training found among the pairs that
  agree on a field (the deterministic rules see too few where records have many errors).
- `u` is corrected for the true matches among the random pairs. In small data they are most of the
  agreements on an e-mail or a birth date, and would make these look common.
- Further models weigh what tells members of a household, and namesakes, apart
  (`cdp_ml.identity.dependence`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cdp_ml.config import IdentitySpec
from cdp_ml.errors import LinkageError
from cdp_ml.identity import blocking
from cdp_ml.identity.comparisons import Kind, splink_comparison
from cdp_ml.identity.dependence import CONTEXTS, HOUSEHOLD, Context, train_context
from cdp_ml.identity.model import Model
from cdp_ml.identity.people import count_rows, learn_aliases, learn_terms, make_people, with_terms
from cdp_ml.identity.weighing import context_levels, predict, quiet_splink, weight

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

log = logging.getLogger(__name__)

RANDOM_PAIRS = 6e5
TRAINING_RECORDS = 250_000
TRAINING_PAIRS = 1e5
CONTEXT_PAIRS = 100_000
LEAST_TRAINING_PAIRS = 30
EM_ITERATIONS = 25
UNSETTLED = 0.01
"""A session whose last iteration still moved a probability by more than this has found nothing."""
LEAST_BUDGET = 1_000_000
"""Pairs that are always affordable."""
STRANGERS = 100
"""Pairs of strangers who differ in everything, added to the random pairs: in tiny data all may be
one person, and what all share must not look common."""
LEAST_M = 0.001
"""No disagreement is impossible where people type."""
LEAST_U = 0.05
"""What remains at least of an observed `u`, however many of the agreements are true matches."""


def train(
    db: DuckDBPyConnection,
    spec: IdentitySpec,
    kinds: Mapping[str, Kind],
    rules: blocking.Rules,
    filled: Mapping[str, int],
) -> Model:
    """Learn all that linking needs from the records themselves.

    Args:
        db: with table `nodes`.
        spec: models/identity.yaml.
        kinds: the comparisons for which there are values, by field.
        rules: the blocking rules for which there are values.
        filled: by field, how many records have a value.

    Raises:
        LinkageError: if expectation maximisation comes to a result within none of the rules.
    """
    records = count_rows(db, "nodes")
    frequent = [x.term for c in spec.comparisons if c.term_frequency for x in _of(kinds, c.field)]
    counted = with_terms(filled, sorted({f for f in frequent if f in filled}), records)
    model = Model(
        settings={},
        kinds={c.field: c.kind for c in spec.comparisons if c.field in kinds},
        rarest={f: 1 / n for f, n in counted.items()},
        contexts={},
        strict=True,
        blocks=(),
        aliases=learn_aliases(db),
        terms=learn_terms(db, counted),
        large_blocks=blocking.find_large_blocks(db, (), {}),
        spec=spec.fingerprint(),
        records=records,
    )
    make_people(db, model)
    settings, sessions, unobserved = _parameters(db, spec, kinds, filled)
    model = replace(model, settings=settings, sessions=sessions, unobserved=unobserved)
    for context in CONTEXTS if spec.contexts else ():
        model = _with_context(db, model, context, filled)
    return _with_blocks(db, model, rules, max(LEAST_BUDGET, spec.pairs_per_record * records))


def _of(kinds: Mapping[str, Kind], field: str) -> Any:
    return kinds[field].levels if field in kinds else ()


def _with_blocks(
    db: DuckDBPyConnection, model: Model, rules: blocking.Rules, budget: float
) -> Model:
    share = blocking.sample_pairs(db, rules)
    db.execute(f"""
        CREATE OR REPLACE TABLE weighed AS
        SELECT unique_id_l AS join_key_l, unique_id_r AS join_key_r,
            1 / (1 + pow(2, -({weight(model)}))) AS probability
        FROM {predict(db, model)}
    """)
    blocks = blocking.choose_blocks(db, rules, share, budget)
    large = blocking.find_large_blocks(db, blocks, rules)
    db.execute("DROP TABLE blocked")
    return replace(model, blocks=blocks, large_blocks=large)


def _with_context(
    db: DuckDBPyConnection, model: Model, context: Context, filled: Mapping[str, int]
) -> Model:
    """Train the model of those who share something; on a sample of the pairs if they are many."""
    rules = blocking.usable_rules([", ".join(r) for r in context.rules], filled).values()
    if not rules:
        return model
    found = " UNION ".join(_sampled_pairs(db, rule) for rule in rules)
    db.execute(f"CREATE OR REPLACE TABLE candidates AS SELECT *, '0' AS match_key FROM ({found})")
    levels, pairs, start = context_levels(db, model, context, predict(db, model))
    personal = tuple(f for f, kind in model.kinds.items() if kind in context.personal)
    fitted, others = train_context(levels, pairs, start, personal)
    if not others:
        log.info("identity: no model of %s: they seem to be one person", context.name)
    return replace(
        model,
        contexts={**model.contexts, context.name: fitted} if fitted else model.contexts,
        strict=model.strict and (others or context is not HOUSEHOLD),
    )


def _sampled_pairs(db: DuckDBPyConnection, rule: tuple[str, ...]) -> str:
    """SQL: pairs that agree on the rule's expressions, of some of its blocks if they are many."""
    kept = min(1.0, CONTEXT_PAIRS / max(_count_pairs(db, rule), 1))
    key = f"hash({', '.join(rule)})"
    known = " AND ".join(f"({e}) IS NOT NULL" for e in rule)
    some = f"SELECT unique_id, {key} AS key FROM people WHERE {known} AND {key} % 1000000 < {{}}"
    blocks = f"({some.format(int(kept * 1_000_000))})"
    return f"""
        SELECT l.unique_id AS join_key_l, r.unique_id AS join_key_r
        FROM {blocks} l JOIN {blocks} r USING (key) WHERE l.unique_id < r.unique_id
    """


def _parameters(
    db: DuckDBPyConnection,
    spec: IdentitySpec,
    kinds: Mapping[str, Kind],
    filled: Mapping[str, int],
) -> tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]:
    """Splink's settings with prior, `m` and `u`; the sessions, and the levels never observed."""
    prior = _prior(db, spec, filled)
    with quiet_splink():
        linker = _linker(db, [splink_comparison(f, kind) for f, kind in kinds.items()], prior)
        _sample_u(db, linker, spec.seed)
        sessions = _maximise(db, linker, _teaching_rules(spec, kinds, filled))
        settings: dict[str, Any] = linker.misc.save_model_to_json()
    singles = {f: kind.typical_share for f, kind in kinds.items() if kind.typical_share}
    singles |= {k[0]: session["share"] for k, session in sessions.items() if len(k) == 1}
    prior = _prior_by_training(db, settings, kinds, singles, filled) or prior
    settings["probability_two_random_records_match"] = prior
    _correct_u(db, settings, kinds, prior, singles)
    facts = {", ".join(k): {**s, "share": _rounded(s["share"])} for k, s in sessions.items()}
    return settings, facts, _unobserved(linker)


def _linker(db: DuckDBPyConnection, comparisons: list[dict[str, Any]], prior: float) -> Any:
    """A Splink linker on a sample of the records, which thins matches and others alike.

    With a `DuckDBAPI` of its own, because its cache would serve stale tables.
    """
    from splink import DuckDBAPI, Linker, SettingsCreator

    settings = SettingsCreator(
        link_type="dedupe_only",  # all sources in one table: pairs within and between them
        comparisons=comparisons,
        blocking_rules_to_generate_predictions=[],
        probability_two_random_records_match=prior,
        retain_matching_columns=False,
        retain_intermediate_calculation_columns=False,
        linker_uid="cdp",
        max_iterations=EM_ITERATIONS,
    )
    kept = min(1.0, TRAINING_RECORDS / max(count_rows(db, "people"), 1))
    some = f"hash(unique_id) % 1000000 < {int(kept * 1_000_000)}"
    db.execute(f"CREATE OR REPLACE TABLE sample AS SELECT * FROM people WHERE {some}")
    return Linker(DuckDBAPI(db).register("sample"), settings, log_level=None)


def _prior(db: DuckDBPyConnection, spec: IdentitySpec, filled: Mapping[str, int]) -> float:
    """The probability that two random records match, from the pairs that rules find for certain.

    That is Splink's `estimate_probability_two_random_records_match`, with bounds for tiny data.
    """
    records = count_rows(db, "people")
    total = records * (records - 1) / 2
    rules = blocking.usable_rules(spec.prior_rules, filled).values()
    found = [
        f"SELECT l.unique_id, r.unique_id FROM people l JOIN people r ON l.unique_id < r.unique_id"
        f" AND {' AND '.join(f'l.{c} = r.{c}' for c in rule)}"
        for rule in rules
    ]
    pairs = count_rows(db, f"({' UNION '.join(found)})") if found else 0
    return _rounded(min(max(pairs / spec.recall, 0.5) / total, 0.5))


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
        for rule, expressions in blocking.usable_rules(spec.training_rules, filled).items()
        if any(
            not any(kind.uses(c) for _, columns in blocking.expressions(rule) for c in columns)
            for kind in kinds.values()
        )
    ]


def _maximise(
    db: DuckDBPyConnection, linker: Any, rules: list[tuple[str, ...]]
) -> dict[tuple[str, ...], dict[str, Any]]:
    """Estimate `m` within each rule; returns what the sessions came to.

    Raises:
        LinkageError: if there were sessions, and none came to a result.
    """
    found = {}
    for expressions in rules:
        # Splink drops comparisons from its settings for good when a session finds no pairs.
        if _count_pairs(db, expressions, "sample") < LEAST_TRAINING_PAIRS:
            log.info("identity: too few pairs share %s to learn from", ", ".join(expressions))
            continue
        found[expressions] = _learn_within(linker, expressions)
    if found and not any(found.values()):
        raise LinkageError(
            "models/identity.yaml: training_rules: expectation maximisation came to no result "
            f"within any of {len(found)} rules; name others whose pairs are matches more often, or "
            "'training_rules: []' to link with typical values"
        )
    return {expressions: session for expressions, session in found.items() if session}


def _learn_within(linker: Any, expressions: tuple[str, ...]) -> dict[str, Any] | None:
    """One session: its iterations and the share of matches that it found; None if it failed."""
    from splink import block_on
    from splink.internals.exceptions import SplinkException

    before = linker._settings_obj.core_model_settings.copy()
    try:
        session = linker.training.estimate_parameters_using_expectation_maximisation(
            block_on(*expressions),
            estimate_without_term_frequencies=True,
            max_pairs=TRAINING_PAIRS,
            record_sample_proportion=1.0,
        )
        history = session._core_model_settings_history
        # Splink stops at its last iteration, settled or not, and says so nowhere.
        settled = _change(*history[-2:]) <= UNSETTLED
    except (SplinkException, ArithmeticError, ValueError) as error:
        log.debug("identity: Splink: %s", type(error).__name__)
        settled = False
    if not settled:
        # What a failed session leaves behind would stay: fewer comparisons, and its estimates.
        linker._settings_obj.core_model_settings = before
        log.warning(
            "models/identity.yaml: training_rules: '%s' is left out: expectation maximisation does "
            "not converge within it; take the rule out or add a field to it",
            ", ".join(expressions),
        )
        return None
    share = float(history[-1].probability_two_random_records_match)
    return {"iterations": len(history) - 1, "share": share}


def _change(before: Any, after: Any) -> float:
    """The greatest change of a parameter from one iteration to the next."""
    changes = [abs(b - a) for a, b in zip(_values(before), _values(after), strict=True)]
    return float("nan") if any(c != c for c in changes) else max(changes)


def _values(settings: Any) -> list[float]:
    """Splink's parameters that expectation maximisation changes: the share of matches and `m`."""
    levels = (x for c in settings.comparisons for x in c._comparison_levels_excluding_null)
    return [settings.probability_two_random_records_match, *(x.m_probability for x in levels)]


def _unobserved(linker: Any) -> tuple[str, ...]:
    """The levels that no training showed, as 'field: level (m, u)'.

    `m`: not among matches, the declared one stays; `u`: not among random pairs, it is small.
    """
    found = []
    for comparison in linker._settings_obj.core_model_settings.comparisons:
        for level in comparison._comparison_levels_excluding_null:
            known = {"m": level._has_estimated_m_values, "u": level._has_estimated_u_values}
            if missing := ", ".join(k for k, is_known in known.items() if not is_known):
                field, label = comparison.output_column_name, level.label_for_charts
                found.append(f"{field}: {label} ({missing})")
    log.info("identity: %d comparison levels were not observed", len(found))
    return tuple(found)


def _prior_by_training(
    db: DuckDBPyConnection,
    settings: dict[str, Any],
    kinds: Mapping[str, Kind],
    shares: Mapping[str, float],
    filled: Mapping[str, int],
) -> float | None:
    """The prior as the training sees it; None if it knows no share of matches for any field.

    Of all matches, those whose records both have the field (`filled`) and agree on it (`m`) are
    the share of matches found among the pairs that agree on it; the median of such fields counts.
    """
    from statistics import median

    everyone = _count_pairs(db, ("true",))
    records = count_rows(db, "people")
    found = [
        shares[field] * pairs / (m * (filled[field] / records) ** 2 * everyone)
        for field, m in _exact_m(settings, kinds).items()
        if field in shares and (pairs := _count_pairs(db, (field,)))
    ]
    return _rounded(min(max(median(found), 0.5 / everyone), 0.5)) if found else None


def _exact_m(settings: dict[str, Any], kinds: Mapping[str, Kind]) -> dict[str, float]:
    """`m` of exact agreement by field, as trained or else as declared."""
    best = {c["output_column_name"]: c["comparison_levels"][1] for c in settings["comparisons"]}
    declared = {f: kind.levels[0].m for f, kind in kinds.items()}
    return {f: best[f].get("m_probability", m) for f, m in declared.items()}


def _correct_u(
    db: DuckDBPyConnection,
    settings: dict[str, Any],
    kinds: Mapping[str, Kind],
    prior: float,
    shares: Mapping[str, float],
) -> None:
    """Take the true matches out of what random pairs showed, fill what was not seen, and round.

    A random pair agrees with probability `p = prior * m + (1 - prior) * u`. Where expectation
    maximisation saw all pairs that share a field, it has told the share of matches among them;
    `u` of an exact agreement then follows from that and from the exact count of these pairs.
    """
    everyone = max(_count_pairs(db, ("true",)), 1)
    for comparison in settings["comparisons"]:
        field = comparison["output_column_name"]
        seen = [x.get("u_probability", 0) > 0 for x in _of_values(comparison)]
        levels = _complete(comparison, kinds[field], everyone)
        for level in (x for x, was_seen in zip(levels, seen, strict=True) if was_seen):
            p, m = level["u_probability"], level["m_probability"]
            level["u_probability"] = _rounded(max(p - prior * m, LEAST_U * p) / (1 - prior))
        if field in shares:
            agreeing = max(_count_pairs(db, (field,)), 1) / (everyone + STRANGERS)
            unlike = max(1 - shares[field], LEAST_U)
            levels[0]["u_probability"] = _rounded(min(agreeing * unlike / (1 - prior), 1.0))


def _of_values(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """The comparison's levels of two values that are there."""
    return [x for x in comparison["comparison_levels"] if not x.get("is_null_level")]


def _complete(comparison: dict[str, Any], kind: Kind, pairs: int) -> list[dict[str, Any]]:
    """The levels, with what was never observed filled in and nothing held to be impossible."""
    levels = _of_values(comparison)
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


def _count_pairs(
    db: DuckDBPyConnection, expressions: tuple[str, ...], table: str = "people"
) -> int:
    """How many pairs agree on all expressions."""
    known = " AND ".join(f"({e}) IS NOT NULL" for e in expressions)
    sizes = f"SELECT count(*) AS n FROM {table} WHERE {known} GROUP BY {', '.join(expressions)}"
    found = db.execute(f"SELECT coalesce(sum(n * (n - 1) // 2), 0) FROM ({sizes})").fetchall()
    return int(found[0][0])
