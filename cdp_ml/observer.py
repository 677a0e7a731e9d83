"""What can be known of the people of `cdp_ml.synthetic`: the best that any model could do.

An observer knows how the world is made, and of each person what silos had seen until an instant,
but no hidden trait: not how often this person orders, nor whether the person has left. The chance
of an order is then the expectation over everything hidden, given what was seen (Bayes' rule):

    P(order | seen) = sum over c > day, l of P(c, l | seen) P(order | c, l)
    P(c, l | seen) ~ P(c) p(l) orders(c, l) visits(c, l) mails(c)

with c the day on which the person leaves, l the rate of orders, and exposure A(c) the season
summed over the days from the first to the lesser of c and the instant:

    orders(c, l) = sum over g of P(g | discounts) l^n (1 + g)^n' exp(-l (A(c) + g A'(c)))
    visits(c, l) = sum over m of P(m) v^k exp(-s v A(c)),  v = base + l m
    mails(c) = sum over e of P(e) e^O (1 - e)^(S - O) 0.08^O" (1 - 0.08 e)^(S" - O")

where n orders were seen, n' of them and A' of the exposure in the campaign, whose effect is g; k
visits in the share s of the visits that can be linked to the person; and before c of S mails O
were opened, from c on of S" mails O". Sums over l, m, e and g are quadratures, c is summed by the
weeks between mailings; no probability is off by more than 0.003 for that (tests see to it).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import gammaincinv, logsumexp, roots_jacobi

Array = npt.NDArray[Any]
Columns = dict[str, Array]

RATES, INTERESTS = 40, 21  # points of quadratures
LONGEST = 4_000  # days that anyone may stay, to speak of
CELLS = 4_000_000
"""About so many numbers are held at a time: people are taken in groups."""


@dataclass(frozen=True)
class Habits:
    """The distributions from which the hidden traits of people are drawn."""

    rate: tuple[float, float] = (1.2, 1 / 55)  # gamma: orders a day
    quits: tuple[float, float] = (2.0, 1 / 1300)  # gamma: the daily chance to leave for good
    quits_within: tuple[float, float] = (1e-5, 0.02)
    visits: float = 0.02  # a day, beside those that go with the rate
    interest: tuple[float, float] = (0.7, 0.3)  # lognormal: visits for each order
    engagement: tuple[float, float] = (2.0, 3.0)  # beta: the share of mails that are opened
    opens_after_leaving: float = 0.08  # of that share
    sensitivity: tuple[float, float] = (2.0, 3.0)  # beta: to discounts
    discounts: tuple[float, float] = (0.1, 0.6)  # of lines: base, and by sensitivity
    effect: tuple[float, float, float] = (-0.35, 2.4, 0.2)  # base, by sensitivity, spread
    effect_within: tuple[float, float] = (-0.5, 2.5)


@dataclass(frozen=True)
class Calendar:
    """What is the same for all: the season and the campaign by day, and the days of mailings.

    `fine` multiplies the number of points of the quadratures.
    """

    season: Array
    campaign: Array
    mailings: Array
    habits: Habits = Habits()
    fine: int = 1

    @cached_property
    def elapsed(self) -> Array:
        """The season summed up to the start of each day."""
        return np.concatenate([[0.0], np.cumsum(self.season)])

    @cached_property
    def in_campaign(self) -> Array:
        """The same, of the days of the campaign alone."""
        return np.concatenate([[0.0], np.cumsum(self.season * self.campaign)])

    @cached_property
    def _stays(self) -> Array:
        """The chance that someone has not left so many days after the first."""
        (shape, scale), within = self.habits.quits, self.habits.quits_within
        points = (np.arange(400 * self.fine) + 0.5) / (400 * self.fine)
        quits = np.clip(gammaincinv(shape, points) * scale, *within)
        stays = np.cumprod(np.tile(1 - quits, (LONGEST, 1)), axis=0).mean(axis=1)
        return np.concatenate([[1.0], stays])

    def staying(self, days: Array) -> Array:
        """The chance that someone has not left so many days after the first."""
        return np.asarray(self._stays[np.clip(days, 0, LONGEST)])


@dataclass(frozen=True)
class Seen:
    """What was seen of each person until a day; arrays of equal length, but `mails`.

    `last` is the last day with an order or a linked visit, and a large negative number without.
    `linked` is the share of visits that would have been linked to the person. `treated` is the
    chance to be, or come to be, in the campaign. `mails` counts those sent by person and mailing,
    `opened` those of them that were opened.
    """

    joined: Array
    last: Array
    orders: Array
    campaign_orders: Array
    lines: Array
    discounted: Array
    visits: Array
    linked: Array
    treated: Array
    mails: Array
    opened: Array


def purchase_probability(seen: Seen, calendar: Calendar, day: int, horizon: int) -> Array:
    """The chance of an order within `horizon` days from `day`, for all that can be known.

    Args:
        seen: until `day`, of people who can order.
        calendar: the season and the mailings.
        day: the instant, in days from the start of the history.
        horizon: in days.

    Returns:
        A probability for each person.
    """
    found = np.empty(len(seen.joined))
    for people in _groups(seen, calendar, day):
        some = Seen(**{name: column[people] for name, column in vars(seen).items()})
        found[people] = _of_group(some, calendar, day, horizon)
    return found


def _groups(seen: Seen, calendar: Calendar, day: int) -> Iterator[slice]:
    """People in slices that need about `CELLS` numbers."""
    rows = np.cumsum(_spans(seen, calendar, day)[1] + 1)
    each = RATES * INTERESTS * calendar.fine**2
    starts = np.flatnonzero(np.diff(rows * each // CELLS, prepend=-1))
    for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
        yield slice(start, stop)


def _of_group(seen: Seen, calendar: Calendar, day: int, horizon: int) -> Array:
    rows, rate = _rows(seen, calendar, day), _rates(seen, calendar, day)
    effect, chance = _effects(seen, calendar)
    of, start, alive = rows["person"], rows["start"], rows["alive"]
    logs = (rows["chance"] + _mails(seen, rows, calendar))[:, None]
    logs = logs + _visits(seen, rows, rate, calendar) + _orders(seen, rows, rate, calendar)
    weight = np.exp(logs - np.maximum.reduceat(logs.max(axis=1), start)[of, None])
    uplift = _uplift(seen, rows, rate, effect, chance)
    everything = np.add.reduceat((weight * uplift).sum(axis=1), start)
    each = chance[:, None] * _campaign(seen, rows["campaign"][alive], rate, effect)
    silent = _silent(seen, calendar, rate, effect, slice(day, day + horizon))
    return np.asarray((weight[alive] * (each * (1 - silent)).sum(axis=2)).sum(axis=1) / everything)


def _rows(seen: Seen, calendar: Calendar, day: int) -> Columns:
    """The spans of days on which a person may have left, and the case that none has come yet.

    A span lies between two mailings; who leaves on the day of one is not there for it. `chance` is
    the logarithm of the prior; `mailing` counts the mailings before the leave.
    """
    since, spans = _spans(seen, calendar, day)
    person = np.repeat(np.arange(len(spans)), spans + 1)
    start = np.cumsum(spans + 1) - spans - 1
    left = (spans + start)[person] - np.arange(len(person))  # 0: alive, 1: the latest span
    edges = np.append(calendar.mailings[calendar.mailings < day], day)
    mailing = np.minimum(len(edges) - left, len(edges) - 1)
    begin = np.where(left == spans[person], since[person], edges[mailing - 1])
    begin, end = np.where(left == 0, day, begin), edges[mailing]
    joined = seen.joined[person] + 1
    stays = calendar.staying(begin - joined)
    goes = stays - np.where(left == 0, 0.0, calendar.staying(end - joined))
    until = np.where(left == 0, day, (begin + end + 1) / 2)
    with np.errstate(divide="ignore"):
        chance = np.log(goes)
    return {
        "person": person,
        "start": start,
        "alive": np.flatnonzero(left == 0),
        "mailing": mailing,
        "chance": chance,
        "exposure": _between(calendar.elapsed, joined, until),
        "campaign": _between(calendar.in_campaign, joined, until),
    }


def _spans(seen: Seen, calendar: Calendar, day: int) -> tuple[Array, Array]:
    """From when each person may have left, and between how many mailings."""
    since = np.minimum(np.maximum(seen.last, seen.joined + 1), day)
    mailings = calendar.mailings[calendar.mailings < day]
    return since, len(mailings) - np.searchsorted(mailings, since, side="right") + 1


def _between(elapsed: Array, start: Array, stop: Array) -> Array:
    at = np.arange(len(elapsed))
    return np.maximum(np.interp(stop, at, elapsed) - np.interp(start, at, elapsed), 0.0)


def _rates(seen: Seen, calendar: Calendar, day: int) -> Array:
    """Rates at equal steps of their logarithm, by person, wide around what the orders say."""
    shape, scale = calendar.habits.rate
    joined, last = seen.joined + 1, np.maximum(seen.last, seen.joined + 1)
    pace = [
        np.log((shape + seen.orders) / (1 / scale + _between(calendar.elapsed, joined, until)))
        for until in (np.full(len(last), day), last)
    ]
    width = 8 / np.sqrt(shape + seen.orders)
    steps = np.linspace(0, 1, RATES * calendar.fine)
    low, high = pace[0] - width, pace[1] + width
    return np.asarray(np.exp(low[:, None] + steps * (high - low)[:, None]))


def _orders(seen: Seen, rows: Columns, rate: Array, calendar: Calendar) -> Array:
    """The logarithm of a rate's prior (by its logarithm) and of the orders' likelihood, by row."""
    (shape, scale), of = calendar.habits.rate, rows["person"]
    known = (shape + seen.orders)[:, None] * np.log(rate) - rate / scale
    return np.asarray(known[of] - rate[of] * rows["exposure"][:, None])


def _visits(seen: Seen, rows: Columns, rate: Array, calendar: Calendar) -> Array:
    """The logarithm of the likelihood of the visits, by row and rate."""
    (mean, spread), of = calendar.habits.interest, rows["person"]
    z = np.linspace(-4, 4, INTERESTS * calendar.fine)
    prior = -(z**2) / 2 - np.log(np.exp(-(z**2) / 2).sum())
    some = np.flatnonzero(seen.linked[of] > 0)
    exposure, of = (rows["exposure"] * seen.linked[of])[some, None, None], of[some]
    pace = calendar.habits.visits + rate[:, :, None] * np.exp(mean + spread * z)
    counted = prior + seen.visits[:, None, None] * np.log(pace)
    found = np.zeros((len(rows["person"]), rate.shape[1]))
    found[some] = logsumexp(counted[of] - pace[of] * exposure, axis=2)
    return found


def _mails(seen: Seen, rows: Columns, calendar: Calendar) -> Array:
    """The logarithm of the likelihood of what was opened, by row."""
    after, until = calendar.habits.opens_after_leaving, rows["mailing"]
    share, prior = _beta_points(calendar.habits.engagement, 32 * calendar.fine)
    found, of = np.zeros(len(until)), rows["person"]
    some = np.flatnonzero(seen.mails.sum(axis=1)[of] > 0)
    sent, opened = (
        np.concatenate([np.zeros((len(m), 1)), np.cumsum(m, axis=1)], axis=1)
        for m in (seen.mails, seen.opened)
    )
    of, until = of[some], until[some]
    missed = (sent - opened)[of, until]
    ignored = (sent - opened)[of, -1] - missed
    late = opened[of, -1] - opened[of, until]
    logs = np.log(prior) + opened[of, -1][:, None] * np.log(share) + (late * np.log(after))[:, None]
    logs = logs + missed[:, None] * np.log1p(-share) + ignored[:, None] * np.log1p(-after * share)
    found[some] = logsumexp(logs, axis=1)
    return found


def _effects(seen: Seen, calendar: Calendar) -> tuple[Array, Array]:
    """Effects that the campaign may have, the first being none, and their chance by person."""
    habits, fine = calendar.habits, calendar.fine
    sensitivity, prior = _beta_points(habits.sensitivity, 12 * fine)
    z, weight = np.polynomial.hermite_e.hermegauss(3 * fine)
    base, slope, spread = habits.effect
    effect = np.clip(base + slope * sensitivity[:, None] + spread * z, *habits.effect_within)
    tempted = habits.discounts[0] + habits.discounts[1] * sensitivity
    logs = np.log(prior) + seen.discounted[:, None] * np.log(tempted)
    logs += (seen.lines - seen.discounted)[:, None] * np.log1p(-tempted)
    chance = np.exp(logs - logsumexp(logs, axis=1)[:, None])[:, :, None] * (weight / weight.sum())
    treated = seen.treated[:, None] * chance.reshape(len(chance), -1)
    return np.append(0.0, effect), np.column_stack([1 - seen.treated, treated])


def _uplift(seen: Seen, rows: Columns, rate: Array, effect: Array, chance: Array) -> Array:
    """The likelihood of the orders in the campaign over that without one, by row and rate."""
    of = rows["person"]
    found = np.ones((len(of), rate.shape[1]))
    some = np.flatnonzero((rows["campaign"] > 0) & (seen.treated[of] > 0))
    of = of[some]
    part = Seen(**{name: column[of] for name, column in vars(seen).items()})
    each = _campaign(part, rows["campaign"][some], rate[of], effect)
    found[some] = (chance[of][:, None] * each).sum(axis=2)
    return found


def _campaign(seen: Seen, exposure: Array, rate: Array, effect: Array) -> Array:
    """The same by row, rate and effect."""
    orders = (1 + effect) ** seen.campaign_orders[:, None]
    return np.asarray(orders[:, None] * np.exp(-effect * (rate * exposure[:, None])[:, :, None]))


def _silent(seen: Seen, calendar: Calendar, rate: Array, effect: Array, window: slice) -> Array:
    """The chance of no order in a window, by person (not left before), rate and effect.

    The rest of the effects is left out if there is no campaign in the window.
    """
    edges = np.append(np.arange(window.start, window.stop, 7), window.stop)
    joined = seen.joined + 1
    stays = [calendar.staying(edge - joined) for edge in edges]
    found: Any = 0.0
    for i, until in enumerate([*(edges[:-1] + edges[1:] + 1) / 2, window.stop]):
        start, stop = np.array(window.start), np.array(until)
        season = float(_between(calendar.elapsed, start, stop))
        lifted = float(_between(calendar.in_campaign, start, stop))
        goes = (stays[i] - (stays[i + 1] if i + 1 < len(stays) else 0.0)) / stays[0]
        pace = season + lifted * (effect if lifted else effect[:1])
        found = found + goes[:, None, None] * np.exp(-rate[:, :, None] * pace)
    return np.asarray(found)


def _beta_points(shapes: tuple[float, float], number: int) -> tuple[Array, Array]:
    """Points and weights to average over a beta distribution: Gauss-Jacobi."""
    a, b = shapes
    x, weight = roots_jacobi(number, b - 1, a - 1)
    return (1 + x) / 2, weight / weight.sum()
