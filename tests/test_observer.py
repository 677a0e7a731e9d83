"""The observer of the fictional retailer: Bayes' rule, by hand where that can be done."""

from dataclasses import replace
from datetime import date
from functools import partial

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from cdp_ml import synthetic
from cdp_ml.observer import Calendar, Habits, Seen, purchase_probability

DAYS, DAY, AHEAD, LEAVES = 400, 340, 30, 0.004
STAYING = Habits(quits_within=(1e-12, 1e-12))
LEAVING = Habits(quits_within=(LEAVES, LEAVES))
A, B = 1.2, 55.0  # the gamma prior of the rate


def calendar(habits: Habits, campaign: slice = slice(0, 0), fine: int = 1) -> Calendar:
    is_campaign = np.zeros(DAYS, dtype=bool)
    is_campaign[campaign] = True
    return Calendar(np.ones(DAYS), is_campaign, np.arange(3, DAYS, 7), habits, fine)


def people(orders=(0,), last=(-10_000,), **given) -> Seen:
    """People who joined on day 39, so that at most 300 days have been seen of them."""
    rows = len(orders)
    mails = np.zeros((rows, (DAY - 4) // 7 + 1))
    nothing = dict.fromkeys(
        ("campaign_orders", "lines", "discounted", "visits", "linked", "treated"), np.zeros(rows)
    )
    known = {"joined": np.full(rows, 39), "orders": np.array(orders), "last": np.array(last)}
    return Seen(**{**nothing, "mails": mails, "opened": mails, **known, **given})


def chance(seen: Seen, habits: Habits, **more) -> np.ndarray:
    return purchase_probability(seen, calendar(habits, **more), DAY, AHEAD)


def test_who_never_leaves_orders_at_a_rate_that_is_gamma_distributed_again():
    orders = np.array([0, 1, 4, 30])
    found = chance(people(orders, [-10_000, 300, 300, 300]), STAYING)
    expected = 1 - ((B + 300) / (B + 300 + AHEAD)) ** (A + orders)
    assert found == pytest.approx(expected, abs=1e-4)


def by_hand(orders: int, last: int, left=lambda day: 1.0) -> float:
    """The same with days of leaving summed one by one, and the rate integrated out by a formula."""
    leave = np.arange(max(last, 40) + 1, DAY + AHEAD + 2_000)
    prior = LEAVES * (1 - LEAVES) ** (leave - 41) * [left(day) for day in leave]
    seen = B + np.minimum(leave, DAY) - 40
    ahead = np.clip(leave - DAY, 0, AHEAD)
    silent = seen ** -(A + orders), (seen + ahead) ** -(A + orders)
    return 1 - (prior * silent[1]).sum() / (prior * silent[0]).sum()


@pytest.mark.parametrize(("orders", "last"), [(1, 330), (1, 100), (6, 339), (6, 250), (25, 300)])
def test_silence_is_weighed_against_having_left(orders, last):
    found = chance(people([orders], [last]), LEAVING)
    assert found == pytest.approx([by_hand(orders, last)], abs=0.003)


def test_a_mail_opened_says_that_somebody_is_there_and_unopened_ones_that_not():
    mails = np.ones((3, 49))  # weekly, from day 3 to day 339
    opened = np.zeros((3, 49))
    opened[1, :40], opened[2] = 1, 1  # none; until day 276; all
    seen = people([5] * 3, [270] * 3, mails=mails, opened=opened)
    never, once, always = chance(seen, LEAVING)
    known = chance(people([5], [270]), LEAVING)[0]
    assert once < never < known < always
    assert always == pytest.approx(by_hand(5, 339), abs=0.01)


def test_opened_mails_are_weighed_as_by_hand():
    mails, opened = np.ones((1, 49)), np.zeros((1, 49))
    opened[0, ::2] = 1
    opened[0, 44:] = 0

    def left(day: int) -> float:
        share = (np.arange(2_000) + 0.5) / 2_000
        there = day > np.arange(3, DAY, 7)
        opens = share * np.where(there, 1.0, LEAVING.opens_after_leaving)[:, None]
        likely = np.where(opened[0][:, None] == 1, opens, 1 - opens).prod(axis=0)
        return (likely * share * (1 - share) ** 2).sum()

    found = chance(people([5], [270], mails=mails, opened=opened), LEAVING)
    assert found == pytest.approx([by_hand(5, 270, left)], abs=0.002)


def test_visits_tell_of_the_rate_even_without_an_order():
    seen = people([0] * 3, [-10_000, 338, 338], visits=np.array([0, 8, 60]), linked=np.ones(3))
    none, some, many = chance(seen, STAYING)
    assert none < some < many
    few_linked = chance(people([0], [338], visits=np.array([8]), linked=np.full(1, 0.2)), STAYING)
    assert few_linked[0] > some


def test_orders_in_a_campaign_say_less_of_the_rate_of_who_was_in_it():
    seen = people([6, 6], [330, 330], campaign_orders=np.array([6, 6]), treated=np.array([0, 1.0]))
    outside, inside = chance(seen, STAYING, campaign=slice(300, 331))
    assert inside < outside - 0.01


def test_discounts_taken_foretell_the_effect_of_a_campaign():
    lines = {"lines": np.array([40, 40]), "discounted": np.array([4, 26])}
    seen = people([6, 6], [330, 330], treated=np.ones(2), **lines)
    indifferent, keen = chance(seen, STAYING, campaign=slice(DAY, DAY + AHEAD))
    assert indifferent < keen - 0.1


@pytest.fixture(scope="module")
def world():
    stream = partial(synthetic._stream, 3)
    return synthetic._world(stream, 3_000, synthetic._clock(date(2026, 7, 1)))


@pytest.mark.parametrize(("horizon", "back"), [(30, 30), (90, 90)])
def test_the_observer_is_right_on_average_and_knows_less_than_the_truth(world, horizon, back):
    table = synthetic._outcome(world, world.clock.days - back, horizon, True).to_pandas()
    table = table[table.observable.between(0.001, 0.999)]
    bins = np.digitize(table.observable, np.quantile(table.observable, [0.2, 0.4, 0.6, 0.8]))
    for _, some in table.groupby(bins):
        for told in (some.probability, some.happened.astype(float)):
            error = (told - some.observable).std() / len(some) ** 0.5
            assert abs((told - some.observable).mean()) < 4 * error
    by = [table.probability.clip(1e-9, 1 - 1e-9), table.observable]
    knowing, observer = (log_loss(table.happened, p) for p in by)
    assert knowing < observer < log_loss(table.happened, np.full(len(table), table.happened.mean()))
    knowing, observer = (roc_auc_score(table.happened, p) for p in by)
    assert 0.7 < observer < knowing


def test_finer_quadratures_change_nothing(world):
    day, known = world.clock.days - 90, np.arange(150)
    known = known[(world.persons["rate"][known] > 0) & (world.persons["joined"][known] < day)]
    seen = synthetic._seen(world, known, day)
    clock = world.clock
    coarse = Calendar(clock.season, clock.campaign(), clock.mailings, synthetic.HABITS)
    found = [purchase_probability(seen, c, day, 90) for c in (coarse, replace(coarse, fine=2))]
    assert found[0] == pytest.approx(found[1], abs=0.002)


def test_what_comes_later_changes_nothing(world):
    day = world.clock.days - 90
    known = np.flatnonzero(world.persons["joined"] < day)
    orders = {name: c[world.orders["day"] < day] for name, c in world.orders.items()}
    lines = {n: c[world.orders["day"][world.lines["order"]] < day] for n, c in world.lines.items()}
    mails = {n: c[world.mails["day"] < day] for n, c in world.mails.items()}
    sessions = {n: c[world.sessions["day"] < day] for n, c in world.sessions.items()}
    past = replace(world, orders=orders, lines=lines, mails=mails, sessions=sessions)
    full, cut = (vars(synthetic._seen(w, known, day)) for w in (world, past))
    for name, column in full.items():
        assert np.array_equal(column, cut[name]), name
