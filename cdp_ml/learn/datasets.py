"""Training sets without leaks: at which instants, for whom, from what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from cdp_ml.engine import columns_of, where
from cdp_ml.errors import ContractError, LeakageError, NotPromotedError, nearest

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from ibis.backends.sql import SQLBackend
    from ibis.expr.types import Table

    from cdp_ml.config import ModelSpec

KEY = ("customer_id", "event_timestamp")
AT_ONCE = 8192
"""Rows of a matrix that are filled at a time: as many as stay in the cache."""
LOOKED_AT, FEWEST_DOUBTED, SUSPICIOUS = 2_500, 50, 0.98
"""How many rows of each outcome are looked at for a feature that alone has so high an AUC: at most,
and at least, else chance would show some."""


@dataclass(frozen=True)
class TimeSplit:
    """The instants of a training set, and of the test that comes after it.

    The label windows of `train` have closed by `test`, and that of `test` by `as_of`. A clustering
    model has no labels: its one instant is `as_of`. That of an uplift model is its campaign's
    start: it is tested by cross-fitting. The instants of a next_category model are the starts of
    windows of orders; it has no features.
    """

    train: tuple[datetime, ...]
    test: datetime
    as_of: datetime
    horizon: timedelta

    @property
    def instants(self) -> tuple[datetime, ...]:
        """All instants at which features are needed, oldest first."""
        return tuple(sorted({*self.train, self.test}))


def time_split(
    spec: ModelSpec,
    as_of: datetime,
    first_fact: datetime,
    campaigns: Mapping[str, datetime] | None = None,
) -> TimeSplit:
    """Choose the instants of a model's training set.

    The test instant lies one horizon before `as_of`, so that its label window has just closed. The
    newest training instant lies one horizon before that (the gap), the others `every_days` apart
    before it, while at least one horizon of history precedes them: a customer's past must be seen
    at least as long as the future to be predicted.

    Args:
        spec: gives horizon, number and distance of the snapshots.
        as_of: the instant of the refresh, UTC.
        first_fact: time of the earliest order or event.
        campaigns: when each campaign began, for uplift models.

    Raises:
        NotPromotedError: if the history is too short for one training instant, or there is no such
            campaign, or its label window has not closed.
    """
    if spec.task == "clustering":
        return TimeSplit((as_of,), as_of, as_of, timedelta(0))
    if spec.task == "uplift":
        return _campaign_split(spec, as_of, campaigns or {})
    if spec.task == "next_category":
        return _window_split(spec, as_of)
    horizon, every = (timedelta(d) for d in (spec.label.within_days, spec.snapshots.every_days))
    test = as_of - horizon
    candidates = (test - horizon - k * every for k in range(spec.snapshots.count))
    train = tuple(sorted(t for t in candidates if t - horizon >= first_fact))
    if not train:
        raise NotPromotedError(
            f"model '{spec.name}': too little history: {(as_of - first_fact).days} days, needs "
            f"{3 * horizon.days} (three times its horizon); shorten 'label.within_days' or wait"
        )
    return TimeSplit(train, test, as_of, horizon)


def _campaign_split(
    spec: ModelSpec, as_of: datetime, campaigns: Mapping[str, datetime]
) -> TimeSplit:
    """One instant, the midnight before the campaign's first exposure: traits are of whole days."""
    campaign, began = spec.campaign or "", {n: t for n, t in campaigns.items() if t < as_of}
    if campaign not in began:
        known = nearest(campaign, began) if began else "no exposures are known"
        raise NotPromotedError(f"model '{spec.name}': no such campaign: '{campaign}'; {known}")
    start = began[campaign].replace(hour=0, minute=0, second=0, microsecond=0)
    horizon = timedelta(days=spec.label.within_days)
    if start + horizon > as_of:
        raise NotPromotedError(
            f"model '{spec.name}': the outcomes of campaign '{campaign}' are known from "
            f"{start + horizon:%Y-%m-%d} on, {horizon.days} days after its start; wait until then"
        )
    return TimeSplit((start,), start, as_of, horizon)


def _window_split(spec: ModelSpec, as_of: datetime) -> TimeSplit:
    from cdp_ml.learn.estimators import estimator_of, with_defaults
    from cdp_ml.learn.next_category import DEFAULTS

    params = with_defaults(spec.estimator, DEFAULTS, estimator_of(spec.name))
    window = timedelta(days=float(params["within_days"]))
    earlier = (as_of - back * window for back in range(2, int(params["windows"]) + 2))
    return TimeSplit(tuple(sorted(earlier)), as_of - window, as_of, window)


def eligible(con: SQLBackend, features: Table, spec: ModelSpec, keep: Sequence[str] = KEY) -> Table:
    """Whom the model is about, at each instant.

    Args:
        con: the engine.
        features: customer_id, event_timestamp, and the columns that `spec.population` names.
        spec: its `population` is an SQL condition over features.
        keep: the columns to return.

    Returns:
        customer_id, event_timestamp, or `keep`, of the rows that satisfy the condition.

    Raises:
        ConfigError: if the condition is not SQL or names an unknown feature.
    """
    return where(con, features, spec.population, _population(spec), keep)


def _population(spec: ModelSpec) -> str:
    return f"models/{spec.name}.yaml: population"


def population_columns(spec: ModelSpec, known: Sequence[str]) -> list[str]:
    """The columns that a model's population names.

    Args:
        spec: the model.
        known: names of all features.

    Raises:
        ConfigError: if its population is not SQL or names an unknown feature.
    """
    return columns_of(spec.population, (*KEY, *known), _population(spec))


def feature_names(spec: ModelSpec, frame: pa.Table) -> tuple[str, ...]:
    """The columns that the model may learn from: `spec.inputs`, or all numeric ones.

    Args:
        spec: the model.
        frame: customer_id, event_timestamp, features, and label if there is one.

    Raises:
        ContractError: if an input is not a numeric column of the frame.
    """
    import pyarrow.types as kind

    numeric = [
        f.name
        for f in frame.schema
        if f.name not in (*KEY, "label")
        and (kind.is_integer(f.type) or kind.is_floating(f.type) or kind.is_boolean(f.type))
    ]
    for name in spec.inputs:
        if name not in numeric:
            raise ContractError(
                f"models/{spec.name}.yaml: inputs: no numeric feature '{name}'; "
                f"{nearest(name, numeric)}"
            )
    return spec.inputs or tuple(numeric)


def matrix(frame: pa.Table | Mapping[str, Any], features: tuple[str, ...]) -> np.ndarray:
    """The features as a float64 matrix, absent values as NaN.

    Args:
        frame: columns by name: an Arrow table, a pandas frame, or lists of numbers.
        features: the columns to take, in order.

    Raises:
        ContractError: if a column is missing.
    """
    import numpy as np

    names = getattr(frame, "column_names", None) or list(frame)
    for name in features:
        if name not in names:
            raise ContractError(f"no feature '{name}' in the frame; {nearest(name, names)}")
    if not features:
        return np.empty((0, 0))
    if hasattr(frame, "select") and hasattr(frame, "slice"):
        return _rows_of_arrow(frame.select(features))
    return np.column_stack([_numbers(frame[name]) for name in features])


def check_no_leak(frame: pa.Table, split: TimeSplit, name: str) -> None:
    """Refuse a training set that knows the future.

    A row's features must not be from after its instant: every column of dates or times beside
    `event_timestamp` (such as the `ingested_at` of what a feature was computed from) is taken to
    say from when they are, or when they became known. Rows other than those of the test must
    have closed label windows by the test instant, and the test by `as_of`.

    Args:
        frame: customer_id, event_timestamp and features.
        split: the instants.
        name: the model's name, for the message.

    Raises:
        LeakageError: if one of these does not hold.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    instants = frame["event_timestamp"]
    for field in frame.schema:
        dated = pa.types.is_timestamp(field.type) or pa.types.is_date(field.type)
        if dated and field.name != "event_timestamp":
            late = pc.sum(pc.greater(frame[field.name].cast(instants.type), instants)).as_py()
            if late:
                raise LeakageError(
                    f"model '{name}': {late} rows whose '{field.name}' lies after their instant: "
                    "features must be as known at 'event_timestamp'"
                )
    _check_windows(sorted(pc.unique(instants).to_pylist()), split, name)


def check_no_copy(x: np.ndarray, y: np.ndarray, features: tuple[str, ...], name: str) -> None:
    """Refuse a feature that tells the outcome by itself: it must have been computed afterwards.

    What was known at the instant never orders hundreds of outcomes without a fault.

    Args:
        x: rows x features.
        y: the outcomes; of amounts, whether there was one.
        features: names of the columns.
        name: the model's name, for the message.

    Raises:
        LeakageError: if one does.
    """
    import numpy as np

    happened = y > 0
    for feature, column in zip(features, x.T, strict=True):
        known = np.nan_to_num(column, nan=-np.inf)
        ones, zeros = known[happened], known[~happened]
        if ones.min() > zeros.max() or ones.max() < zeros.min():
            raise LeakageError(
                f"model '{name}': the feature '{feature}' tells the outcome of all {len(y):,} "
                "training rows without a fault: it was computed from after their instant; leave it "
                "out of the feature service, or of 'inputs'"
            )


def too_good(x: np.ndarray, y: np.ndarray, features: tuple[str, ...]) -> str:
    """Warn of a feature that alone orders the outcomes nearly without a fault, in a sentence.

    Args:
        x: rows x features; some thousand rows with and without the outcome are looked at.
        y: the outcomes; of amounts, whether there was one.
        features: names of the columns.

    Returns:
        The sentence, empty if there is no such feature, or too few rows to tell.
    """
    import numpy as np
    from scipy.stats import rankdata

    drawn = np.random.default_rng(1).permutation(len(x))
    with_, without = drawn[y[drawn] > 0][:LOOKED_AT], drawn[y[drawn] <= 0][:LOOKED_AT]
    ones, zeros = len(with_), len(without)
    if min(ones, zeros) < FEWEST_DOUBTED:
        return ""
    rank = rankdata(np.nan_to_num(x[np.append(with_, without)], nan=-np.inf), axis=0)
    auc = (rank[:ones].sum(axis=0) - ones * (ones + 1) / 2) / (ones * zeros)
    best = int(np.argmax(np.abs(auc - 0.5)))
    if abs(auc[best] - 0.5) < SUSPICIOUS - 0.5:
        return ""
    return (
        f"Too good to be true? Alone, '{features[best]}' has an AUC of "
        f"{max(auc[best], 1 - auc[best]):.3f} in training: make sure that it tells nothing from "
        "after its instant."
    )


def rows_at(frame: pa.Table, instants: tuple[datetime, ...]) -> pa.Table:
    """The rows of a frame at these instants; not copied if they lie together."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = pa.array(instants, frame.schema.field("event_timestamp").type)
    chosen = pc.is_in(frame["event_timestamp"], value_set=wanted)
    places = np.flatnonzero(chosen.to_numpy())
    together = len(places) and places[-1] - places[0] + 1 == len(places)
    return frame.slice(places[0], len(places)) if together else frame.filter(chosen)


def in_order(frame: Any) -> pa.Table:
    """A training frame as an Arrow table, by event_timestamp and customer_id.

    The order of rows decides which fall into a bootstrap or a tree's bag; sorting by key makes
    training repeatable.
    """
    table = as_arrow(frame)
    return table if _is_sorted(table) else table.take(order_of(table))


def as_arrow(frame: Any) -> pa.Table:
    """A training frame, Arrow or pandas, as an Arrow table with instants in UTC."""
    import pyarrow as pa

    table = frame if isinstance(frame, pa.Table) else pa.Table.from_pandas(frame, None, False)
    at = table.column_names.index("event_timestamp")
    instants = table["event_timestamp"]
    if instants.type.tz is None:
        instants = instants.cast(pa.timestamp("us")).cast(pa.timestamp("us", "UTC"))
    return table.set_column(at, "event_timestamp", instants.cast(pa.timestamp("us", "UTC")))


def order_of(table: pa.Table) -> pa.Array:
    """Where the rows lie that are sorted by event_timestamp and customer_id."""
    import pyarrow.compute as pc

    return pc.sort_indices(table, [("event_timestamp", "ascending"), ("customer_id", "ascending")])


def _is_sorted(table: pa.Table) -> bool:
    """Whether `order_of` would change nothing: to ask costs less than to sort and copy."""
    import pyarrow.compute as pc

    before, after = table.slice(0, max(table.num_rows - 1, 0)), table.slice(1)
    earlier = pc.less(before["event_timestamp"], after["event_timestamp"])
    same = pc.equal(before["event_timestamp"], after["event_timestamp"])
    lower = pc.less_equal(before["customer_id"], after["customer_id"])
    return pc.all(pc.or_(earlier, pc.and_(same, lower))).as_py() is not False


def _check_windows(instants: list[datetime], split: TimeSplit, name: str) -> None:
    closes = {t: t.astimezone(UTC) + split.horizon for t in instants}
    limit = {t: split.as_of if t == split.test else split.test for t in instants}
    for t in instants:
        if closes[t] > limit[t]:
            raise LeakageError(
                f"model '{name}': the label window of {t:%Y-%m-%d} closes on {closes[t]:%Y-%m-%d}, "
                f"after {limit[t]:%Y-%m-%d}: its outcome was not yet known then"
            )


def _rows_of_arrow(columns: pa.Table) -> np.ndarray:
    """The columns side by side, some rows at a time: whole columns would be copied twice."""
    import numpy as np

    x = np.empty((columns.num_rows, columns.num_columns))
    for start in range(0, len(x), AT_ONCE):
        part = columns.slice(start, AT_ONCE)
        for number, column in enumerate(part.columns):
            x[start : start + AT_ONCE, number] = _numbers(column)
    return x


def _numbers(column: Any) -> np.ndarray:
    import numpy as np

    if hasattr(column, "combine_chunks"):
        import pyarrow as pa

        plain = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
        # Arrow's cast of a few thousand numbers costs three times what NumPy's does.
        column = (column if plain else column.cast(pa.float64())).to_numpy()
    elif hasattr(column, "to_numpy"):
        column = column.to_numpy(dtype=float, na_value=np.nan)
    return np.asarray(column, dtype=np.float64)
