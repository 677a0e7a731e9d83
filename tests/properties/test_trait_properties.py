"""What holds of traits in every world."""

import datetime as dt
import random

import pytest
from conftest import rows, traits_by_key
from trait_worlds import AS_OF, DAY, INSTANTS, busy_world, everything, shifted

from cdp_ml.config import Engine
from cdp_ml.engine import connect
from cdp_ml.lake import Lake

CALENDAR = ("event_timestamp", "age_years", "day_of_year")
"""What is of the calendar: weekends and ages stay where they are."""
TICK = dt.timedelta(microseconds=1)


@pytest.fixture(scope="module")
def world():
    return busy_world()


@pytest.fixture(scope="module")
def known(world):
    """All traits of the world."""
    return everything(world)


def at(instants, known):
    return {key: row for key, row in known.items() if key[1] in instants}


def test_the_world_has_something_to_get_wrong(known):
    assert {customer for customer, _ in known} == {"x", "y", "z"}
    varying = {n for row in known.values() for n in row} - {"customer_id", "event_timestamp"}
    told = {n for n in varying if len({row[n] for row in known.values()}) > 1}
    assert len(told) > len(varying) / 2


def test_many_instants_are_as_each_by_itself(world, known):
    for instant in INSTANTS:
        assert everything(world, [instant]) == at([instant], known)


def test_what_happens_or_becomes_known_at_the_instant_or_later_changes_nothing(world, known):
    instants, first = INSTANTS[:2], INSTANTS[1]
    other = busy_world(2)
    late = shifted(other, 900 * DAY)
    told_late = [row | {"ingested_at": first} for row in other["events"]]
    more = {n: world[n] + late[n] for n in ("transactions", "consents")}
    more |= {"events": world["events"] + late["events"] + told_late}
    assert everything(world | more, instants) == at(instants, known)


def test_the_order_of_rows_changes_nothing(world, known):
    mixed = random.Random(1)
    assert everything({n: mixed.sample(t, len(t)) for n, t in world.items()}) == known


def test_a_world_shifted_by_whole_weeks_has_the_same_traits(world, known):
    by = -7 * 257 * DAY
    moved = everything(shifted(world, by), [t + by for t in INSTANTS])
    back = {(c, t - by): _without(row, CALENDAR) for (c, t), row in moved.items()}
    assert back == {key: _without(row, CALENDAR) for key, row in known.items()}


def test_given_customers_have_the_traits_that_they_have_among_all(world, known):
    chosen = {k: row for k, row in known.items() if k[0] in ("x", "z")}
    assert everything(world, customers=["z", "x", "nobody"]) == chosen


def test_between_facts_a_window_changes_at_midnight_only(world):
    """No fact of these worlds is at another time than a quarter of a day."""
    noon = AS_OF - 3.5 * DAY
    early, later = noon + TICK, noon + 0.25 * DAY
    found = everything(world, [early, later])
    for (customer, instant), row in found.items():
        if instant == early:
            same = found[customer, later]
            assert _windowed(row) == _windowed(same)


def _windowed(row):
    return {k: v for k, v in row.items() if k.endswith("d") and k != "customer_id"}


def _without(row, names):
    return {k: v for k, v in row.items() if k not in names}


def test_a_customer_without_history_has_zeros_and_nulls_at_every_instant():
    record = {"source": "shop", "source_record_id": "1", "event_timestamp": AS_OF - 900 * DAY}
    link = {"source": "shop", "source_record_id": "1", "customer_id": "x", "confidence": 1.0}
    world = {
        "records": [record | {"ingested_at": AS_OF - 900 * DAY}],
        "crosswalk": [link | {"valid_from": AS_OF - 900 * DAY}],
    }
    nothing = ("identifiers", "transactions", "events", "products", "consents")
    found = everything(world | {name: [] for name in nothing})
    assert [t for _, t in sorted(found)] == sorted(INSTANTS)
    for row in found.values():
        assert (row["orders_lifetime"], row["spend_365d"], row["visits_30d"]) == (0, 0.0, 0)
        unknown = ("days_since_last_order", "email_open_rate_90d", "household_size")
        assert [row[name] for name in unknown] == [None] * 3


def test_facts_delivered_twice_count_once(tmp_path):
    world, con = busy_world(), connect(Engine(threads=1))
    lake = Lake(tmp_path)
    for _ in range(2):
        for name, table in world.items():
            lake.upsert(name, rows(name, *table), con)
    given = {name: lake.read(name, con) for name in world}
    assert traits_by_key(con, given, INSTANTS[1:]) == everything(world, INSTANTS[1:])
