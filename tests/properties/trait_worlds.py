"""Random worlds of three people whose identifiers, links and facts become known over time."""

import datetime as dt
import random

from conftest import rows, traits_by_key, utc

from cdp_ml.config import Engine
from cdp_ml.engine import connect, hold

AS_OF = utc(2026, 7, 1)
DAY = dt.timedelta(days=1)
INSTANTS = [AS_OF - 200 * DAY, AS_OF - DAY * 0.4, AS_OF]
KINDS = ("page_view", "product_view", "cart_add", "checkout", "email_sent", "email_opened")


def busy_world(seed=1):
    """A world with many facts; the same for the same seed."""
    drawn = random.Random(seed)

    def some(count, *choices):
        return [tuple(drawn.choice(c) for c in choices) for _ in range(count)]

    age = [q / 4 for q in range(1, 1600)]
    links = [*some(3, "123", "xy", age), *((r, "xyz"[i], 900) for i, r in enumerate("123"))]
    lines = some(40, "abcd", age, (0.0, 0.3, 40.0), (-1, 1, 2, 3))
    events = some(60, "abcd", age, (0.0, 0.3, 40.0), KINDS)
    logins = [("a", "1", 850), *some(8, "abcd", "123", age)]
    return make_world(links, logins, lines, events, some(3, "123", age, (True, False)))


def make_world(links, logins, lines, events, consents):
    """The tables, as lists of rows."""
    return {
        "records": [_record(r) for r in "123"],
        "crosswalk": _links(links),
        "identifiers": [
            _who(k, age) | {"source": "shop", "source_record_id": r}
            for (k, r), age in {(k, r): age for k, r, age in logins}.items()
        ],
        "transactions": [
            _who(k, age, delay)
            | {"order_id": f"o{k}{int(age) % 7}", "line_no": i, "product_id": f"p{i % 3}"}
            | {"channel": ("web", "store")[i % 2], "quantity": float(q), "unit_price": 9.99}
            for i, (k, age, delay, q) in enumerate(lines)
        ],
        "events": [
            _who(k, age, delay)
            | {"event_id": f"e{i}", "event_type": kind, "category": ("tea", "mug", None)[i % 3]}
            for i, (k, age, delay, kind) in enumerate(events)
        ],
        "products": [{"product_id": f"p{i}", "category": ("tea", "mug")[i % 2]} for i in range(3)],
        "consents": [
            {"source": "shop", "source_record_id": r, "purpose": "marketing", "granted": granted}
            | _at(age)
            for r, age, granted in consents
        ],
    }


def _at(age, delay=0.0):
    return {"event_timestamp": AS_OF - age * DAY, "ingested_at": AS_OF - (age - delay) * DAY}


def _who(key, age, delay=0.0):
    return {"identifier_type": "login", "identifier": key, **_at(age, delay)}


def _record(record):
    person = {"birth_date": dt.date(1980, 1, 1), "street": "1 high st", "postcode": f"AB{record}"}
    return {"source": "shop", "source_record_id": record, **person, **_at(900)}


def _links(drawn):
    """Each record's links one after the other, the last one open."""
    found = []
    for record in "123":
        changes = sorted({-age: customer for r, customer, age in drawn if r == record}.items())
        ends = [*(AS_OF + days * DAY for days, _ in changes[1:]), None]
        for (days, customer), end in zip(changes, ends, strict=True):
            link = {"customer_id": customer, "confidence": 1.0, "valid_from": AS_OF + days * DAY}
            key = {"source": "shop", "source_record_id": record}
            found.append({**key, **link, "valid_to": end})
    return found


def shifted(world, by):
    """The world with all times moved."""

    def move(value):
        return value + by if isinstance(value, dt.datetime) else value

    return {n: [{k: move(v) for k, v in row.items()} for row in t] for n, t in world.items()}


def everything(world, instants=INSTANTS, con=None, **more):
    """All traits of all customers of a world: one dictionary by customer and instant."""
    con = con or connect(Engine(threads=1))
    return traits_by_key(con, held(con, world), instants, **more)


def held(con, world):
    """The world's tables in an engine."""
    return {name: hold(con, f"given_{name}", rows(name, *t)) for name, t in world.items()}
