"""How traits come of facts: tiles by customer and day once, then a pass over them an instant.

A tile holds the sums of a customer's day; as windows are whole days, all traits of an instant are
sums over tiles. The second part compiles to the same SQL for every instant, with the instant in a
table of one row, so that it is compiled once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cdp_ml.engine import blank
from cdp_ml.errors import ConfigError, nearest
from cdp_ml.traits.definitions import (
    GROUPS,
    TRAITS,
    ZERO_IF_NONE,
    Aggregate,
    Trait,
    days_between,
)
from cdp_ml.traits.relations import RELATIONS, SPAN, Keep, grouped, relations

if TYPE_CHECKING:
    from ibis.expr.types import Scalar, Table, Value

_BY_ROW = ("mean", "std", "max")
_BY_VALUE = ("nunique", "top_share")


def trait_tiles(
    orders: Table,
    events: Table,
    products: Table,
    instants: int,
    traits: Sequence[Trait] = TRAITS,
    keep: Keep = lambda _, table: table,
) -> dict[str, Table]:
    """What the traits of all instants are summed from, computed once.

    Args:
        orders: table `transactions`, keyed by `cdp_ml.activity.activity_at`.
        events: table `events`, keyed likewise.
        products: table `products`; gives the category of what was bought.
        instants: how many instants there are.
        traits: which.
        keep: given a name and a table, computes the table at once and returns the result.

    Returns:
        Tables by name: customer_id, since, until and what else `traits_at` needs, sorted by
        customer, as they are then summed much faster.

    Raises:
        ConfigError: if a trait names a relation or column that there is not.
    """
    members = _tiles_of(traits)
    used = [_aggregate_of(served[0]).relation for served in members.values()]
    known = relations(orders, events, products, instants, used, keep)
    _check_columns(traits, known)
    return {
        name: _tile(known[relation], served, instants, keep, f"tile_{name}")
        for (name, served), relation in zip(members.items(), used, strict=True)
    }


def traits_at(
    tiles: Mapping[str, Table], customers: Table, traits: Sequence[Trait] = TRAITS
) -> dict[str, Table]:
    """The traits of all customers as of one of the instants.

    Which it is stays open: the expressions have the blanks `number` (of the instant), `day` (its
    number) and `as_of` for `cdp_ml.engine.Compiled`.

    Args:
        tiles: of `trait_tiles`, of these traits.
        customers: one row a customer: `number` (the customer_id of the tiles; null: is only a
            neighbor of others), customer_id and, for traits of profiles, the other columns of table
            `customers` and marketing_consent.
        traits: which.

    Returns:
        Tables `traits_<group>` by name: customer_id, event_timestamp (the instant) and the group's
        traits. Counts and sums of known customers are 0 where nothing happened; rates without a
        denominator and times since what never happened are null.
    """
    now = {"number": blank("number", "int32"), "day": blank("day", "int32")}
    now["as_of"] = blank("as_of", "timestamp('UTC', 6)")
    has_profiles = any(t.group == "profile" for t in traits)
    people = _with_neighbors(customers) if has_profiles else customers
    people = people.filter(people.number.notnull())
    people = people.mutate(event_timestamp=now["as_of"])
    named = _tiles_of(traits)
    found = {}
    for group in GROUPS:
        if not (members := [t for t in traits if t.group == group]):
            continue
        row = people if group == "profile" else people.select(*_KEY, "number")
        for name, used in named.items():
            if any(t.group == group for t in used):
                sums = _summed(tiles[name], used, now)
                row = row.left_join(sums, row.number == sums[f"{name}_customer"])
        found[f"traits_{group}"] = _finished(row, members)
    return found


_KEY = ("customer_id", "event_timestamp")


def _finished(row: Table, traits: Sequence[Trait]) -> Table:
    """The traits in their types, one row a customer: zeros filled in, the derived ones added."""
    plain = [t for t in traits if isinstance(t.value, Aggregate)]
    row = row.mutate(**{t.name: _typed(row[t.name], t) for t in plain})
    for trait in traits:
        if not isinstance(trait.value, Aggregate):
            row = row.mutate(**{trait.name: trait.value(row).cast(trait.type)})
    return row.select(*_KEY, *(t.name for t in traits))


def _typed(value: Value, trait: Trait) -> Value:
    assert isinstance(trait.value, Aggregate)
    # DuckDB sums integers to 128 bits, which Ibis does not know: it would leave out the cast.
    value = value.cast("float64").cast(trait.type)
    return value.fill_null(0) if trait.value.how in ZERO_IF_NONE else value


def _with_neighbors(customers: Table) -> Table:
    """Count the customers of the same address and of the same region."""
    import ibis

    c = customers.mutate(_region=customers.postcode.substr(0, 2))
    home = ibis.window(group_by=["street", "postcode"])
    has_home = c.street.notnull() & c.postcode.notnull()
    size = ibis.ifelse(has_home, c.count().over(home), None)
    region = ibis.ifelse(
        c["_region"].notnull(), c.count().over(ibis.window(group_by="_region")), None
    )
    return c.mutate(household_size=size, region_customers=region).drop("_region")


def _tiles_of(traits: Sequence[Trait]) -> dict[str, list[Trait]]:
    """The traits that each tile serves; a tile is of a relation, or of one by a column's values."""
    found: dict[str, list[Trait]] = {}
    for trait in traits:
        value = trait.value
        if isinstance(value, Aggregate):
            if value.relation not in RELATIONS:
                hint = nearest(value.relation, RELATIONS)
                raise ConfigError(f"trait '{trait.name}': no relation '{value.relation}'; {hint}")
            found.setdefault(_tile_name(value), []).append(trait)
    return found


def _check_columns(traits: Sequence[Trait], known: Mapping[str, Table]) -> None:
    for trait in traits:
        value = trait.value
        if isinstance(value, Aggregate):
            columns = known[value.relation].columns
            for column in (*value.where, *value.without, value.column, value.weight):
                if column and column not in columns:
                    hint = nearest(column, columns)
                    raise ConfigError(f"trait '{trait.name}': no column '{column}'; {hint}")


def _tile(rows: Table, traits: Sequence[Trait], instants: int, keep: Keep, name: str) -> Table:
    """What the traits of a tile are summed from, of the rows of its relation."""
    first = _aggregate_of(traits[0])
    if first.how in _BY_ROW:
        columns = {c for t in traits for c in _columns_of(_aggregate_of(t))}
        rows = rows.select("customer_id", *SPAN, "day", *sorted(columns))
        return keep(name, rows.order_by("customer_id"))
    by = ["customer_id", "day"]
    if first.how in _BY_VALUE:
        rows, by = rows.filter(rows[first.column].notnull()), [*by, first.column]
    measures = dict(m for t in traits for m in _measures(_aggregate_of(t)))

    def values(table: Table) -> dict[str, Value]:
        return {name: _measured(table, measure) for name, measure in measures.items()}

    return grouped(rows, by, values, instants, keep, name)


def _aggregate_of(trait: Trait) -> Aggregate:
    assert isinstance(trait.value, Aggregate)
    return trait.value


def _columns_of(value: Aggregate) -> list[str]:
    return [value.column, *value.where]


Measure = tuple[str, str, tuple[tuple[str, Any], ...]]


def _measures(value: Aggregate) -> Iterator[tuple[str, Measure]]:
    """What an aggregate needs of each day: how, of which column, of which rows; by name."""
    where = tuple(sorted(value.where.items()))
    if value.how == "sum" or value.weight:
        yield _named("sum", value.weight or value.column, where)
    elif value.how in ("days_since_last", "days_since_first"):
        how = "max" if value.how == "days_since_last" else "min"
        yield _named(how, value.column or "event_timestamp", where)
    else:
        yield _named("count", "", where)
    if value.without:
        yield _named("count", "", tuple(sorted(value.without.items())))


def _named(how: str, column: str, where: tuple[tuple[str, Any], ...]) -> tuple[str, Measure]:
    parts = [how, column, *(f"{c}_{v}" for c, v in where)]
    return "_".join(p for p in parts if p), (how, column, where)


def _measured(rows: Table, measure: Measure) -> Value:
    how, column, where = measure
    condition = _all([rows[c] == v if isinstance(v, str) else rows[c] for c, v in where])
    if how == "count":
        return rows.count(where=condition).cast("int32")
    found = getattr(rows[column], how)(where=condition)
    return found.cast("decimal(18, 4)") if found.type().is_decimal() else found


def _all(conditions: Sequence[Value]) -> Value | None:
    import ibis

    return ibis.and_(*conditions) if conditions else None


def _summed(tile: Table, traits: Sequence[Trait], now: Mapping[str, Scalar]) -> Table:
    """One row a customer with such rows: the traits that are summed from a tile."""
    rows = tile.filter(tile.since <= now["number"], tile.until > now["number"])
    rows = rows.mutate(age=now["day"] - rows.day)
    if None not in (reach := [_reach(t) for t in traits]):
        rows = rows.filter(rows.age <= max(r for r in reach if r is not None))
    first = _aggregate_of(traits[0])
    name = {f"{_tile_name(first)}_customer": rows.customer_id}
    if first.how in _BY_VALUE:
        return _summed_by_value(rows, traits, first.column, name)
    if first.how in _BY_ROW:
        return rows.group_by(**name).aggregate(**{t.name: _by_row(rows, t) for t in traits})
    return rows.group_by(**name).aggregate(
        **{t.name: _by_day(rows, t, now["as_of"]) for t in traits}
    )


def _tile_name(value: Aggregate) -> str:
    kind = f"_by_{value.column}" if value.how in _BY_VALUE else ""
    return value.relation + ("_rows" if value.how in _BY_ROW else kind)


def _reach(trait: Trait) -> int | None:
    """How many days back a trait looks; None for the lifetime."""
    return None if trait.window_days is None else trait.until_days + trait.window_days


def _window(rows: Table, trait: Trait) -> list[Value]:
    """The conditions under which a day is in a trait's window; none for the lifetime."""
    found = [rows.age > trait.until_days] if trait.until_days else []
    if trait.window_days is not None:
        found.append(rows.age <= trait.until_days + trait.window_days)
    return found


def _counted(value: Value, conditions: Sequence[Value], otherwise: object = 0) -> Value:
    """The value where the conditions hold.

    Summing it costs DuckDB half of what a FILTER does.
    """
    import ibis

    return ibis.ifelse(_all(conditions), value, otherwise) if conditions else value


def _by_day(rows: Table, trait: Trait, as_of: Scalar) -> Value:
    import ibis

    value, window = _aggregate_of(trait), _window(rows, trait)
    names = [name for name, _ in _measures(value)]
    measure = rows[names[0]]
    if value.how == "days_since_last":
        return days_between(_counted(measure, window, None).max(), as_of)
    if value.how == "days_since_first":
        return days_between(_counted(measure, window, None).min(), as_of)
    if value.how == "days":
        window = [measure > 0, *(rows[n] == 0 for n in names[1:]), *window]
        measure = ibis.literal(1)
    return _counted(measure, window).sum()


def _by_row(rows: Table, trait: Trait) -> Value:
    value = _aggregate_of(trait)
    conditions = [*_window(rows, trait), *(rows[c] == v for c, v in value.where.items())]
    found = getattr(_counted(rows[value.column], conditions, None), value.how)()
    # The last digits of a mean depend on the order in which threads deliver rows.
    return found.round(6) if value.how in ("mean", "std") else found


def _summed_by_value(
    rows: Table, traits: Sequence[Trait], column: str, name: Mapping[str, Value]
) -> Table:
    measure = {t.name: next(_measures(_aggregate_of(t)))[0] for t in traits}
    sums = {t.name: _counted(rows[measure[t.name]], _window(rows, t)).sum() for t in traits}
    values = rows.group_by(column, **name).aggregate(**sums)
    found = {}
    for trait in traits:
        weight = values[trait.name]
        if _aggregate_of(trait).how == "nunique":
            found[trait.name] = (weight > 0).sum()
        else:
            total = weight.sum().cast("float64")
            found[trait.name] = weight.max().cast("float64") / total.nullif(0)
    return values.group_by(list(name)).aggregate(**found)
