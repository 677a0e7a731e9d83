"""A seeded, fictional retailer whose truth is known.

`generate` invents people, lets them live, shop, browse and read newsletters, and then writes what
five silos would have seen of them: with the misspellings, duplicates and late rows that real silos
have. Beside the silos lies `truth/`: who is behind each record, what each person was going to do,
and what a campaign really changed. `generate_records` returns the same people's records alone, for
many more people than one would let shop.

Time is counted in whole days from the start of the history. A person orders on day `d` with
intensity `rate * season[d]` while `joined < d < churned`; the truth's probabilities follow exactly
from that. Every concern draws from a random stream of its own, so a new one leaves the others as
they were.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from functools import partial, reduce
from itertools import starmap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from cdp_ml.contracts import PERSON_FIELDS, arrow_schema
from cdp_ml.observer import Calendar, Habits, Seen, purchase_probability

Array = npt.NDArray[Any]
Columns = dict[str, Array]
Rng = np.random.Generator
Stream = Callable[[str], Rng]

SOURCES = ("crm", "shop", "pos", "newsletter")
CATEGORIES = (  # an even one is the main product, the next its companion
    "cushions", "cushion covers", "lamps", "light bulbs", "garden furniture", "plant pots",
    "cookware", "kitchen textiles",
)  # fmt: skip
PRODUCTS_PER_CATEGORY = 50
MONTHS = 26
CAMPAIGN = "spring_2026"
CAMPAIGN_DAYS_BEFORE_END = 60
CAMPAIGN_DAYS = 30
COMPANION_DAYS = 30
COMPANION_SHARE = 0.5  # of the orders soon after a main product: go for its companion
ANONYMOUS_RECEIPTS = 0.12  # for each receipt with a card
MAILED_AT = 7 * 3600  # seconds after midnight
LOG_IN = 0.3  # of the visits without an order, of people who log in at all
HABITS = Habits()


@dataclass(frozen=True)
class Errors:
    """How often each thing goes wrong, as a share of the rows that it could befall."""

    typo: float = 0.02  # one slip of the finger in a name or an e-mail
    swapped_names: float = 0.01  # first and last name in each other's field
    nickname: float = 0.06  # Bill instead of William
    newsletter_nickname: float = 0.2  # the same where people introduce themselves
    letter_case: float = 0.04  # SMITH or smith
    maiden_name_kept: float = 0.25  # a new record after the wedding, still in the former name
    old_address_kept: float = 0.15  # a new record after the move, still at the former address
    second_email: float = 0.08  # the other e-mail of those who have two
    family_landline: float = 0.2  # the household's number instead of one's own mobile
    phone_format: float = 0.4  # +44 7…, 0044…, (0)… instead of plain digits
    day_month_swapped: float = 0.01  # 03-04 for 04-03
    born_1900: float = 0.01  # what a form gives when nobody answers
    born_in_future: float = 0.003  # 2031
    corrected: float = 0.04  # the CRM sends the record again, put right
    redelivered: float = 0.004  # exactly the same row twice
    late: float = 0.03  # receipts that reach us days afterwards
    future: float = 0.0003  # events dated 2062
    negative_price: float = 0.001  # receipt lines that cost less than nothing
    test_accounts: float = 0.002  # "Test User"
    bot_hits: float = 0.025  # hits of crawlers
    missing: dict[str, dict[str, float]] = field(
        default_factory=lambda: {
            "crm": {"email": 0.06, "phone": 0.12, "born": 0.15, "street": 0.05, "postcode": 0.03},
            "shop": {"phone": 0.25, "born": 0.6},
            "pos": {"phone": 0.12, "born": 0.04, "postcode": 0.03},
            "newsletter": {"first": 0.12, "last": 0.45},
        }
    )  # fields left empty
    twice: dict[str, float] = field(
        default_factory=lambda: {"crm": 0.05, "shop": 0.05, "pos": 0.02, "newsletter": 0.02}
    )  # people who have a second record in the same silo


ERRORS = Errors()


def _words(text: str) -> list[str]:
    return text.split()


# From the oldest fashion to the newest: a birth year picks a neighborhood in the list.
WOMEN = _words("""Edith Doris Winifred Irene Hilda Mabel Vera Phyllis Gladys Florence Joan
Margaret Betty Jean Dorothy Joyce Barbara Sheila Patricia Maureen Audrey Beryl Shirley Brenda June
Pamela Sylvia Janet Ann Mary Judith Marion Christine Valerie Rosemary Gillian Carol Linda Susan
Jacqueline Kathleen Marilyn Jennifer Diane Lesley Hilary Wendy Elaine Lynn Denise Elizabeth Jane
Julie Karen Alison Deborah Angela Helen Amanda Tracey Sharon Lorraine Heather Beverley Teresa Dawn
Fiona Catherine Caroline Paula Sarah Nicola Joanne Michelle Lisa Tina Donna Samantha Clare Rachel
Claire Emma Louise Victoria Katherine Melanie Rebecca Kelly Zoe Hannah Natalie Kerry Leanne Anna
Gemma Laura Stacey Stephanie Danielle Charlotte Kirsty Natasha Jessica Amy Hayley Lucy Kimberley
Naomi Priya Fatima Aisha Sophie Lauren Chloe Jade Bethany Georgina Alexandra Abigail Eleanor Megan
Emily Alice Olivia Shannon Paige Molly Holly Ellie Grace Amelia Phoebe Poppy Freya Isabella Mia
Evie Daisy Ava Isla Imogen Matilda Zara Maryam Erin Scarlett Rosie Willow""")
MEN = _words("""Albert Ernest Harold Herbert Percy Cyril Wilfred Sidney Reginald Stanley Leonard
Frederick Cecil Norman Walter Ronald Kenneth Dennis Gordon Douglas Eric Donald Raymond Derek Roy
Bernard Maurice Geoffrey Brian Alan Gerald Terence Trevor Keith Malcolm Michael John Peter David
Anthony Robert Roger Barry Clive Graham Colin Leslie William Richard James George Thomas Edward
Charles Christopher Philip Stephen Nigel Ian Kevin Martin Neil Gary Timothy Nicholas Jeremy Adrian
Stuart Andrew Paul Mark Simon Julian Duncan Jonathan Russell Gavin Craig Wayne Darren Jason Dean
Lee Matthew Daniel Benjamin Samuel Gareth Justin Marcus Dominic Scott Damian Adam Gregory Lewis
Shaun Karl Ryan Carl Alexander Patrick Joseph Nathan Ben Oliver Luke Aaron Ashley Sean Kieran Liam
Imran Mohammed Rajesh Ahmed Jamie Jordan Kyle Connor Joshua Jack Callum Harry Joel Bradley Elliot
Toby Zachary Reece Cameron Henry Max Owen Theodore Archie Alfie Jake Noah Ethan Dylan Harvey Leo
Oscar Finley Jacob Logan Freddie Arthur Louis Riley Sebastian Hugo Jude Rory Yusuf Kai Ollie""")
NICKNAMES = dict(
    pair.split(":")
    for pair in _words("""William:Bill Robert:Bob Richard:Dick James:Jim Thomas:Tom Edward:Ted
    Charles:Charlie Christopher:Chris Philip:Phil Stephen:Steve Timothy:Tim Nicholas:Nick
    Andrew:Andy Jonathan:Jon Matthew:Matt Daniel:Dan Benjamin:Benny Samuel:Sam Gregory:Greg
    Alexander:Alex Patrick:Paddy Joseph:Joe Joshua:Josh Michael:Mike Anthony:Tony David:Dave
    Ronald:Ron Kenneth:Ken Raymond:Ray Geoffrey:Geoff Terence:Terry Albert:Bert Frederick:Fred
    Leonard:Len Stanley:Stan Douglas:Doug Donald:Don Gerald:Gerry Zachary:Zach Theodore:Theo
    Elizabeth:Liz Margaret:Maggie Patricia:Pat Susan:Sue Christine:Chris Jennifer:Jenny
    Deborah:Debbie Jacqueline:Jackie Catherine:Cathy Katherine:Kate Victoria:Vicky Rebecca:Becky
    Samantha:Sam Stephanie:Steph Jessica:Jess Alexandra:Alex Abigail:Abby Eleanor:Ellie
    Dorothy:Dot Kathleen:Kath Pamela:Pam Gillian:Gill Valerie:Val Barbara:Babs Judith:Judy
    Amanda:Mandy Joanne:Jo Isabella:Bella Matilda:Tilly Charlotte:Lottie Nicola:Nicky""")
)
SURNAMES = _words("""Smith Jones Williams Taylor Brown Davies Evans Wilson Thomas Johnson Roberts
Robinson Thompson Wright Walker White Edwards Hughes Green Hall Lewis Harris Clarke Patel Jackson
Wood Turner Martin Cooper Hill Ward Morris Moore Clark Lee King Baker Harrison Morgan Allen James
Scott Phillips Watson Davis Parker Price Bennett Young Griffiths Mitchell Kelly Cook Carter
Richardson Bailey Collins Bell Shaw Murphy Miller Cox Richards Khan Marshall Anderson Simpson
Ellis Adams Singh Begum Wilkinson Foster Chapman Powell Webb Rogers Gray Mason Ali Hunt Hussain
Campbell Matthews Owen Palmer Holmes Mills Barnes Knight Lloyd Butler Russell Barker Fisher
Stevens Jenkins Murray Dixon Harvey Graham Pearson Ahmed Fletcher Walsh Kaur Gibson Howard Andrews
Stewart Elliott Reynolds Saunders Payne Fox Ford Pearce Day Brooks West Lawrence Cole Atkinson
Bradley Spencer Gill Dawson Watts Burton Wells Cunningham Francis Hart Ryan Perry Grant Newman
Stone Booth Dean Sharma Begley Nowak Kowalska Okafor Mensah Silva Rossi Schmidt Chen Wong
Nguyen""")
STEMS = _words("""Ash Brad Carl Dun El Fen Gar Hal Inga Ken Lang Mar Nor Old Pem Quar Rad Stan
Thorn Up Ver Wal Yar Bex Crom Dray Fair Hart Kirk Lind Milk Pres Rud Sed Tip Wex""")
ENDINGS = _words("""ton ley ford worth wood field ham by well combe stead more den land bury brook
croft gate head hurst shaw thorpe wick ridge bourne dale kins sall""")
CITIES = _words("""London:SW London:SE London:NW Birmingham:B Leeds:LS Glasgow:G Sheffield:S
Manchester:M Edinburgh:EH Liverpool:L Bristol:BS Cardiff:CF Leicester:LE Wakefield:WF Coventry:CV
Nottingham:NG Newcastle:NE Sunderland:SR Brighton:BN Hull:HU Plymouth:PL Wolverhampton:WV Derby:DE
Swansea:SA Southampton:SO Aberdeen:AB Portsmouth:PO York:YO Dundee:DD Oxford:OX Cambridge:CB
Norwich:NR Gloucester:GL Exeter:EX Bath:BA Chester:CH Lincoln:LN Durham:DH Reading:RG
Ipswich:IP""")
STREETS = _words("""High Station Main Park Church London Victoria Green Manor Queens Kings Mill
Grange Windsor Albert York Springfield Alexandra George Highfield Chester Stanley North South
Albion Oxford Bridge Broad Cambridge Castle Cedar Chapel Cherry Elm Field Garden Grove Hawthorn
Hill Holly Ivy Lime Meadow Oak Orchard Poplar Rose School Spring Vicarage Willow Wood""")
STREET_KINDS = ["Street", "Road", "Lane", "Avenue", "Close", "Drive"]
EMAIL_DOMAINS = [  # with a reserved ending: nobody can be written to by mistake
    f"{name}.example"
    for name in _words("postbox brightmail inbox homemail letterbox telenet mailhub")
]
STORES = ["Leeds", "Bristol", "Glasgow", "Oxford", "York", "Cardiff", "Norwich", "Exeter"]
BROWSERS = [
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) Chrome/126.0",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 14_5) Safari/605.1.15",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) Safari/604.1",
    "Mozilla/5.0 (Linux; Android 14; Pixel 8) Chrome/126.0 Mobile",
    "Mozilla/5.0 (X11; Linux x86_64; rv:127.0) Firefox/127.0",
    "Mozilla/5.0 (compatible; Pricebot/2.1)",
    "Mozilla/5.0 (compatible; Indexbot/1.0)",
]
BOTS = 2  # the last browsers of the list


@dataclass(frozen=True)
class Clock:
    """The history: its first day, its length, and the season's factor for each day (mean 1)."""

    start: np.datetime64
    days: int
    season: Array

    @property
    def elapsed(self) -> Array:
        """The season summed up to the start of each day: time as the shop's demand feels it."""
        return np.concatenate([[0.0], np.cumsum(self.season)])

    @property
    def campaign_day(self) -> int:
        """The day on which the campaign starts."""
        return self.days - CAMPAIGN_DAYS_BEFORE_END

    @property
    def mailings(self) -> Array:
        """The days of the weekly mailings."""
        return np.arange(3, self.days, 7)

    @property
    def end(self) -> Any:
        """The midnight at which the history ends."""
        return (self.start + self.days).astype("M8[s]")

    def campaign(self) -> Array:
        """Whether each day lies in the campaign."""
        since = np.arange(self.days) - self.campaign_day
        return (since >= 0) & (since < CAMPAIGN_DAYS)

    def instant(self, day: Array, second: Array) -> Array:
        """The timestamps, to the second, of days and seconds within them."""
        midnight = (self.start + day.astype("m8[D]")).astype("M8[s]")
        at: Array = midnight + second.astype("m8[s]")
        return at


@dataclass(frozen=True)
class World:
    """All that there is; the silos see parts of it. Tables are arrays of equal length by name."""

    clock: Clock
    products: Columns
    persons: Columns
    records: dict[str, Columns]
    orders: Columns
    lines: Columns
    cookies: Columns
    sessions: Columns
    mails: Columns


def generate(
    out: Path, people: int = 5_000, seed: int = 7, end: date = date(2026, 7, 1)
) -> dict[str, int]:
    """Write the silos and the truth of a fictional retailer under a folder.

    The same arguments give the same bytes.

    Args:
        out: The folder; made when missing.
        people: How many people there are.
        seed: Chooses the world.
        end: The midnight (UTC) before which everything happens; the history has 26 months.

    Returns:
        The rows written, by path relative to `out`.
    """
    stream = partial(_stream, seed)
    world = _world(stream, people, _clock(end))
    tables = {
        "products.csv": pa.table(world.products),
        **_crm(stream("crm files"), world),
        **_shop(stream("shop files"), world),
        **_pos(stream("pos files"), world),
        **_newsletter(stream("newsletter files"), world),
        **_web(stream("web files"), world),
        **_truth(world),
    }
    return {path: _write(out / path, table) for path, table in tables.items()}


def generate_records(
    people: int, seed: int = 7, end: date = date(2026, 7, 1)
) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Make what the four people silos know about the people of `generate`, without any files.

    The records are those that the ingestion keeps: of each the latest version, no test accounts.
    The times of the point of sale, whose file has days alone, are to the second.

    Args:
        people: How many people there are; each has about two records.
        seed: Chooses the world.
        end: The midnight (UTC) before which everything happens.

    Returns:
        The records before standardization (source, source_record_id, the person fields as text,
        event_timestamp, ingested_at); their identifiers, in the contract of `identifiers`: each
        record's own, and the card number that a CRM record notes; and the truth: source,
        source_record_id, person_id (text).
    """
    stream, clock = partial(_stream, seed), _clock(end)
    persons = _persons(stream, people, clock)
    known = _known(stream, persons, clock)
    known["crm"] = _latest(_crm_versions(stream("crm files"), persons, known, clock))
    real = {source: _rows(columns, columns["person"] >= 0) for source, columns in known.items()}
    identifiers = [*starmap(_own_identifiers, real.items()), _card_identifiers(real["crm"])]
    truth = pa.concat_tables(starmap(_true_persons, real.items()))
    text = pa.schema([(name, pa.string()) for name in truth.column_names])
    return (
        pa.concat_tables(starmap(_as_delivered, real.items())),
        pa.concat_tables(identifiers),
        truth.cast(text),
    )


def _world(stream: Stream, people: int, clock: Clock) -> World:
    persons = _persons(stream, people, clock)
    records = _known(stream, persons, clock)
    persons |= _campaign(stream("campaign"), persons, records["crm"], clock)
    orders = _orders(stream("orders"), persons, clock)
    lines = _lines(stream("lines"), persons, orders)
    cookies = _cookies(stream("cookies"), persons)
    sessions = _sessions(stream("sessions"), persons, orders, lines, cookies, clock)
    mails = _mails(stream("mails"), persons, records["newsletter"], clock)
    products = _products(stream("products"))
    return World(clock, products, persons, records, orders, lines, cookies, sessions, mails)


# ---- chance and time ----------------------------------------------------------------------------


def _stream(seed: int, concern: str) -> Rng:
    """The random numbers of one concern; independent of which others exist."""
    key = zlib.crc32(concern.encode())
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(key,)))


def _clock(end: date) -> Clock:
    last = np.datetime64(end, "D")
    start = (last.astype("M8[M]") - MONTHS).astype("M8[D]") + (end.day - 1)
    days = np.arange(start, last)
    of_year = (days - days.astype("M8[Y]")).astype(int)
    weekday = (days.astype(int) + 3) % 7  # 1970-01-01 was a Thursday
    yearly = 1 + 0.1 * np.cos(2 * np.pi * of_year / 365) + np.exp(-(((of_year - 340) / 18) ** 2))
    weekly = np.array([0.85, 0.85, 0.9, 1.0, 1.2, 1.3, 0.9])[weekday]
    season = yearly * weekly
    return Clock(start, len(days), season / season.mean())


def _some(rng: Rng, rows: int, share: float) -> Array:
    """A mask with a share of the rows, and at least one: each kind of error occurs in any world."""
    mask = np.zeros(rows, dtype=bool)
    mask[rng.permutation(rows)[: max(1, round(share * rows))]] = True
    return mask


def _zipf(rng: Rng, words: Array, rows: int, exponent: float = 0.8) -> Array:
    weight = 1 / (np.arange(len(words)) + 5) ** exponent
    drawn: Array = rng.choice(words, rows, p=weight / weight.sum())
    return drawn


def _arrivals(
    rng: Rng, clock: Clock, rate: Array, start: Array, stop: Array
) -> tuple[Array, Array]:
    """Events of a Poisson process with the season's intensity: whose they are, and their days."""
    elapsed = clock.elapsed
    first, last = (elapsed[np.clip(day, 0, clock.days)] for day in (start, stop))
    count = rng.poisson(rate * np.maximum(last - first, 0))
    owner = np.repeat(np.arange(len(rate)), count)
    point = rng.uniform(first[owner], last[owner])
    return owner, np.searchsorted(elapsed, point, side="right") - 1


def _daytime(rng: Rng, rows: int) -> Array:
    """Seconds since midnight, between nine and nine, most of them in the afternoon."""
    return (32_400 + 43_200 * rng.beta(2.0, 1.8, rows)).astype(int)


# ---- words --------------------------------------------------------------------------------------


def _join(*parts: Array | str) -> Array:
    """The parts in one text, no wider than the longest: a number alone would leave room for 21."""
    joined = np.asarray(reduce(np.strings.add, parts))
    return joined.astype(f"U{max(1, np.strings.str_len(joined).max(initial=1))}")


def _digits(number: Array, width: int) -> Array:
    return np.strings.zfill(number.astype(str), width)


def _pick(rng: Rng, words: list[str], rows: int) -> Array:
    return np.array(words)[rng.integers(len(words), size=rows)]


def _numbered(text: Array) -> Array:
    """The same texts made unique: the second bearer of a text gets a 2 before its @, and so on."""
    order = np.argsort(text, kind="stable")
    position = np.arange(len(text))
    new = np.append(True, text[order][1:] != text[order][:-1])
    earlier = np.empty(len(text), dtype=int)
    earlier[order] = position - np.maximum.accumulate(np.where(new, position, 0))
    name, at, domain = np.strings.partition(text, "@")
    number = np.where(earlier > 0, (earlier + 1).astype(str), "")
    return _join(name, number, at, domain)


def _typos(rng: Rng, text: Array, share: float) -> Array:
    """The texts with one letter lost, added, replaced or swapped in a share of them."""
    rows = np.flatnonzero(np.strings.str_len(text) > 3)
    rows = rows[_some(rng, len(rows), share)]
    width = np.strings.str_len(text).max(initial=0) + 1
    wide = text.astype(f"U{width}")
    letters = wide[rows].view(np.uint32).reshape(len(rows), width)
    at = rng.integers(1, np.strings.str_len(text[rows]) - 1)[:, None]
    kind = np.arange(len(rows))[:, None] % 4
    lost, added, replaced, swapped = (kind == k for k in range(4))
    column = np.arange(width)
    origin = column + (lost & (column >= at)) - (added & (column > at))
    origin = origin + (swapped & (column == at)) - (swapped & (column == at + 1))
    letters = np.take_along_axis(letters, np.clip(origin, 0, width - 1), axis=1)
    random = rng.integers(ord("a"), ord("z") + 1, size=(len(rows), 1))
    letters = np.where((added | replaced) & (column == at), random, letters).astype(np.uint32)
    wide[rows] = np.ascontiguousarray(letters).view(wide.dtype).ravel()
    return wide


def _phone_formats(rng: Rng, phone: Array, share: float) -> Array:
    """National digits, a share of them as people write them."""
    head, tail = np.strings.slice(phone, 1, 5), np.strings.slice(phone, 5, 11)
    written = np.stack([
        _join("+44 ", head, " ", tail),
        _join("0", head, " ", tail),
        _join("0044", head, tail),
        _join("+44 (0)", head, tail),
    ])  # fmt: skip
    kind = rng.integers(4, size=len(phone))
    changed = _some(rng, len(phone), share) & (phone != "")
    return np.where(changed, written[kind, np.arange(len(phone))], phone)


# ---- people -------------------------------------------------------------------------------------


def _persons(stream: Stream, people: int, clock: Clock) -> Columns:
    """Everything true of each person: one array element per person."""
    persons = _households(stream("households"), people)
    persons |= _names(stream("names"), persons, clock)
    persons |= _addresses(stream("addresses"), persons, clock)
    persons |= _emails(stream("emails"), persons)
    persons |= _phones(stream("phones"), persons, clock)
    persons |= _memberships(stream("memberships"), people)
    persons |= _behavior(stream("behavior"), persons, clock)
    return persons


def _households(rng: Rng, people: int) -> Columns:
    """Who lives with whom: the first is a parent, the second the partner, then children."""
    size = rng.choice([1, 2, 3, 4, 5], people, p=[0.45, 0.32, 0.13, 0.07, 0.03])
    household = np.repeat(np.arange(people), size)[:people]
    rank = np.arange(people) - np.searchsorted(household, household)
    head = np.arange(people) - rank
    parents = np.bincount(household)[household] > 2
    age = np.where(parents, rng.triangular(40, 48, 64, people), rng.triangular(22, 36, 82, people))
    age = np.where(rank == 1, age[head] + rng.normal(0, 3, people), age)
    oldest_child = np.minimum(age[head] - 20, 30)
    age = np.where(rank > 1, 16 + (oldest_child - 16) * rng.random(people), age)
    gender = rng.integers(2, size=people)
    gender = np.where((rank == 1) & (rng.random(people) < 0.95), 1 - gender[head], gender)
    return {"household": household, "rank": rank, "head": head, "gender": gender, "age": age}


def _first_names(rng: Rng, names: list[str], age: Array) -> Array:
    """Names in the fashion of the birth year: popular around its place in the list, then rarer."""
    eras = 12
    era = np.clip(((82 - age) / 67 * eras).astype(int), 0, eras - 1)
    center = (np.arange(eras) + 0.5) / eras * len(names)
    weight = 1 / (4 + np.abs(np.arange(len(names)) - center[:, None]))
    share = np.cumsum(weight / weight.sum(axis=1, keepdims=True), axis=1)
    # One ascending ladder of all eras, so that one search serves everybody.
    ladder = (share + np.arange(eras)[:, None]).ravel()
    position = np.searchsorted(ladder, era + rng.random(len(age))) - era * len(names)
    chosen: Array = np.array(names)[np.minimum(position, len(names) - 1)]
    return chosen


def _names(rng: Rng, persons: Columns, clock: Clock) -> Columns:
    rank, head, rows = persons["rank"], persons["head"], len(persons["rank"])
    first = np.where(
        persons["gender"] == 1,
        _first_names(rng, WOMEN, persons["age"]),
        _first_names(rng, MEN, persons["age"]),
    )
    formal = np.array(sorted(NICKNAMES))
    place = np.minimum(np.searchsorted(formal, first), len(formal) - 1)
    short = np.array([NICKNAMES[name] for name in formal])[place]
    built = [stem + ending for stem in STEMS for ending in ENDINGS]
    own = _zipf(rng, np.array(SURNAMES + list(rng.permutation(built))), rows)
    shared = (rank > 1) | ((rank == 1) & (rng.random(rows) < 0.8))
    bride = shared & (rank == 1) & (rng.random(rows) < 0.2)
    born = clock.start + clock.days - (persons["age"] * 365.25).astype("m8[D]")
    return {
        "first": first,
        "nickname": np.where(formal[place] == first, short, first),
        "last": np.where(shared, own[head], own),
        "maiden": own,
        "married": np.where(bride, rng.integers(-200, clock.days, rows), -10_000),
        "born": born,
    }


def _addresses(rng: Rng, persons: Columns, clock: Clock) -> Columns:
    """The household's address, its former one, and the day of the move (for most: long ago)."""
    head, rows = persons["head"], len(persons["head"])
    moved = np.where(rng.random(rows) < 0.12, rng.integers(-200, clock.days, rows), -10_000)
    current, former = _dwellings(rng, rows), _dwellings(rng, rows)
    columns = {name: column[head] for name, column in current.items()}
    columns |= {f"former_{name}": column[head] for name, column in former.items()}
    return columns | {"moved": moved[head]}


def _dwellings(rng: Rng, rows: int) -> Columns:
    city, _, area = np.strings.partition(_zipf(rng, np.array(CITIES), rows), ":")
    number = rng.integers(1, 150, rows).astype(str)
    street = _join(number, " ", _pick(rng, STREETS, rows), " ", _pick(rng, STREET_KINDS, rows))
    district, sector = (
        rng.integers(1, 21, rows).astype(str),
        rng.integers(10, size=rows).astype(str),
    )
    unit = [_pick(rng, list("ABDEFGHJLNPQRSTUWXYZ"), rows) for _ in range(2)]
    return {"street": street, "postcode": _join(area, district, " ", sector, *unit), "city": city}


def _emails(rng: Rng, persons: Columns) -> Columns:
    """A personal e-mail, for some a second one; one in ten couples shares theirs."""
    rank, head, rows = persons["rank"], persons["head"], len(persons["rank"])
    first, last, nick = (np.strings.lower(persons[name]) for name in ("first", "last", "nickname"))
    year = np.strings.slice(persons["born"].astype("M8[Y]").astype(str), 2, 4)
    domain = [_join("@", _zipf(rng, np.array(EMAIL_DOMAINS), rows)) for _ in range(3)]
    styles = np.stack([
        _join(first, ".", last, domain[0]),
        _join(first.astype("U1"), last, year, domain[0]),
        _join(nick, "_", last, domain[0]),
        _join(last, ".", first, year, domain[0]),
    ])  # fmt: skip
    own = styles[rng.choice(4, rows, p=[0.4, 0.25, 0.2, 0.15]), np.arange(rows)]
    number = rng.integers(10, 100, rows).astype(str)
    other = _join(nick, number, last.astype("U3"), domain[1])
    family = _join("the.", last, "s", number, domain[2])
    own, other, family = np.split(_numbered(np.concatenate([own, other, family])), 3)
    couple = (np.bincount(head, minlength=rows)[head] > 1) & (rank <= 1)
    own = np.where(couple & (rng.random(rows) < 0.1)[head], family[head], own)
    return {"email": own, "second_email": np.where(rng.random(rows) < 0.3, other, own)}


def _phones(rng: Rng, persons: Columns, clock: Clock) -> Columns:
    """Mobiles before and after a change, and the household's landline.

    A recycled number passes on the same day from a giver, who gets a new one, to a stranger.
    """
    head, rows = persons["head"], len(persons["head"])
    prefixes = np.concatenate([np.arange(7400, 7600), np.arange(7701, 7900)])
    number = rng.choice(len(prefixes) * 10**6, 2 * rows, replace=False, shuffle=True)
    mobile = _join("0", prefixes[number // 10**6].astype(str), _digits(number % 10**6, 6))
    before, after = mobile[:rows].copy(), mobile[:rows].copy()
    changed = np.full(rows, -10_000)
    passed_on = min(max(1, rows // 100), rows // 2)
    giver, taker = np.split(rng.permutation(rows)[: 2 * passed_on], 2)
    changed[giver] = changed[taker] = rng.integers(0, clock.days, len(giver))
    after[giver], after[taker] = mobile[rows + giver], mobile[giver]
    landline = _join("0207", _digits(rng.integers(10**7, size=rows), 7))
    has_landline = rng.random(rows) < 0.3
    landline = np.where(has_landline[head], landline[head], "")
    return {"mobile": after, "former_mobile": before, "changed": changed, "landline": landline}


def _memberships(rng: Rng, people: int) -> Columns:
    """Which silos know each person, and whether the person browses; everyone is in one at least."""
    crm, shop, pos = (rng.random(people) < share for share in (0.58, 0.52, 0.5))
    newsletter = rng.random(people) < np.where(crm | shop, 0.5, 0.2)
    shop |= ~(crm | shop | pos | newsletter)
    browses = rng.random(people) < np.where(shop, 0.92, 0.4)
    return {
        "crm": crm, "shop": shop, "pos": pos, "newsletter": newsletter,
        "browses": browses, "logs_in": shop & (rng.random(people) < 0.6),
    }  # fmt: skip


def _behavior(rng: Rng, persons: Columns, clock: Clock) -> Columns:
    """The hidden traits. `rate` is in orders a day, `quits` the daily chance to leave for good."""
    rows, shop, pos = len(persons["shop"]), persons["shop"], persons["pos"]
    taste = rng.gamma(*HABITS.rate, rows)
    quits = np.clip(rng.gamma(*HABITS.quits, rows), *HABITS.quits_within)
    joined = rng.integers(clock.days - 1095, clock.days - 1, rows)
    sensitivity = rng.beta(*HABITS.sensitivity, rows)
    interest = rng.lognormal(*HABITS.interest, rows)
    base, slope, spread = HABITS.effect
    return {
        "joined": joined,
        "churned": joined + 1 + rng.geometric(quits),
        "rate": np.where(shop | pos, taste, 0.0),
        "quits": quits,
        "visit_rate": np.where(persons["browses"], HABITS.visits + taste * interest, 0),
        "web_share": np.where(pos, np.where(shop, rng.beta(2, 2, rows), 0.0), 1.0),
        "basket": rng.beta(2, 2, rows),
        "engagement": rng.beta(*HABITS.engagement, rows),
        "discount_sensitivity": sensitivity,
        "returns": rng.beta(1, 15, rows),
        "affinity": rng.dirichlet(np.full(len(CATEGORIES), 0.6), rows),
        "effect": np.clip(
            base + slope * sensitivity + rng.normal(0, spread, rows), *HABITS.effect_within
        ),
    }


# ---- what the silos know about people -----------------------------------------------------------


def _known(stream: Stream, persons: Columns, clock: Clock) -> dict[str, Columns]:
    """The records of each silo."""
    return {source: _records(stream(source), persons, source, clock) for source in SOURCES}


def _records(rng: Rng, persons: Columns, source: str, clock: Clock) -> Columns:
    """The records of a silo, oldest first; `person` is -1 for test accounts."""
    once = np.flatnonzero(persons[source])
    twice = once[_some(rng, len(once), ERRORS.twice[source])]
    person = np.concatenate([once, twice])
    # Only the CRM and the newsletter meet people some time after they joined.
    wait = rng.exponential(20 if source in ("crm", "newsletter") else 0.01, len(person))
    wait[len(once) :] += rng.uniform(20, 400, len(twice))
    day = np.minimum(persons["joined"][person] + wait.astype(int), clock.days - 1)
    columns = {"person": person, "created": clock.instant(day, rng.integers(28_000, size=len(day)))}
    columns |= _spoiled(rng, _identity(rng, persons, person, day, source), source)
    columns = _with_tests(rng, columns, clock)
    columns = _rows(columns, np.argsort(columns["created"], kind="stable"))
    number = np.arange(1, len(columns["person"]) + 1)
    return columns | {"id": _join(source[0].upper(), _digits(number, 8))}


def _identity(rng: Rng, persons: Columns, person: Array, day: Array, source: str) -> Columns:
    """What the people would state about themselves on a day: true then, though perhaps outdated."""
    p = {name: column[person] for name, column in persons.items() if name != "affinity"}
    rows = len(person)
    former = (day < p["moved"]) | ((p["moved"] > 0) & (rng.random(rows) < ERRORS.old_address_kept))
    kept = (p["married"] > 0) & (rng.random(rows) < ERRORS.maiden_name_kept)
    nicknamed = ERRORS.newsletter_nickname if source == "newsletter" else ERRORS.nickname
    phone = np.where(day < p["changed"], p["former_mobile"], p["mobile"])
    landline = (rng.random(rows) < ERRORS.family_landline) & (p["landline"] != "")
    second = rng.random(rows) < ERRORS.second_email
    return {
        "first": np.where(rng.random(rows) < nicknamed, p["nickname"], p["first"]),
        "last": np.where((day < p["married"]) | kept, p["maiden"], p["last"]),
        "email": np.where(second, p["second_email"], p["email"]),
        "phone": np.where(landline & (source != "pos"), p["landline"], phone),
        "born": p["born"],
        **{name: np.where(former, p[f"former_{name}"], p[name])
           for name in ("street", "postcode", "city")},
    }  # fmt: skip


def _spoiled(rng: Rng, columns: Columns, source: str) -> Columns:
    """The same statements after passing through a keyboard and a form."""
    spoiled, rows = dict(columns), len(columns["first"])
    for name in ("first", "last", "email"):
        spoiled[name] = _typos(rng, spoiled[name], ERRORS.typo)
    swapped = _some(rng, rows, ERRORS.swapped_names)
    first, last = spoiled["first"], spoiled["last"]
    spoiled |= {"first": np.where(swapped, last, first), "last": np.where(swapped, first, last)}
    shout, mumble = (_some(rng, rows, ERRORS.letter_case / 2) for _ in range(2))
    for name in ("first", "last", "email"):
        text = np.where(shout, np.strings.upper(spoiled[name]), spoiled[name])
        spoiled[name] = np.where(mumble, np.strings.lower(text), text)
    spoiled["phone"] = _phone_formats(rng, spoiled["phone"], ERRORS.phone_format)
    for name, share in ERRORS.missing[source].items():
        spoiled[name] = _emptied(spoiled[name], _some(rng, rows, share))
    return spoiled | {"born": _spoiled_births(rng, spoiled["born"])}


def _emptied(column: Array, gone: Array) -> Array:
    nothing = np.datetime64("NaT") if column.dtype.kind == "M" else ""
    return np.where(gone, nothing, column)


def _spoiled_births(rng: Rng, born: Array) -> Array:
    rows = len(born)
    month = born.astype("M8[M]")
    year = month.astype("M8[Y]")
    day_in_month, month_in_year = (born - month).astype(int), (month - year).astype(int)
    mirrored = (year.astype("M8[M]") + day_in_month % 12).astype("M8[D]") + month_in_year
    able = np.flatnonzero((day_in_month < 12) & (day_in_month != month_in_year) & ~np.isnat(born))
    swap = able[_some(rng, len(able), ERRORS.day_month_swapped / 0.37)]
    born = born.copy()
    born[swap] = mirrored[swap]
    born = np.where(_some(rng, rows, ERRORS.born_1900), np.datetime64("1900-01-01"), born)
    future = np.datetime64("2031-01-01") + rng.integers(365, size=rows)
    return np.where(_some(rng, rows, ERRORS.born_in_future), future, born)


def _with_tests(rng: Rng, columns: Columns, clock: Clock) -> Columns:
    """The records and a few that a developer left behind."""
    tests = max(2, round(ERRORS.test_accounts * len(columns["person"])))
    day, second = rng.integers(clock.days, size=tests), rng.integers(86_400, size=tests)
    test: dict[str, Any] = {
        "person": -1, "created": clock.instant(day, second), "first": "Test", "last": "User",
        "email": "test@example.com", "phone": "07000000000", "born": np.datetime64("2000-01-01"),
        "street": "1 Test Street", "postcode": "TE1 1ST", "city": "Testville",
    }  # fmt: skip
    return {
        name: np.concatenate([column, np.broadcast_to(test[name], tests)])
        for name, column in columns.items()
    }


def _record_of(rng: Rng, records: Columns, person: Array, at: Array) -> Array:
    """For each act of a person, the index of one of the person's records that existed then."""
    order = np.argsort(records["person"], kind="stable")
    of_person = records["person"][order]
    first, after = (np.searchsorted(of_person, person, side=side) for side in ("left", "right"))
    chosen = order[first + (rng.random(len(person)) * (after - first)).astype(int)]
    return np.where(records["created"][chosen] <= at, chosen, order[first])


def _campaign(rng: Rng, persons: Columns, crm: Columns, clock: Clock) -> Columns:
    """An arm for each person whom the CRM knew at the start: 1 treatment, 0 control, -1 outside."""
    known = crm["created"] < clock.instant(np.array(clock.campaign_day), np.array(0))
    eligible = np.unique(crm["person"][known & (crm["person"] >= 0)])
    arm = np.full(len(persons["rate"]), -1)
    arm[eligible] = rng.permutation(len(eligible)) % 2
    return {"arm": arm}


# ---- what people do -----------------------------------------------------------------------------


def _orders(rng: Rng, persons: Columns, clock: Clock) -> Columns:
    """Orders by time. `person` is -1 for anonymous receipts, `taste` whose tastes an order has."""
    joined, churned, rate = persons["joined"], persons["churned"], persons["rate"]
    launch, close = clock.campaign_day, clock.campaign_day + CAMPAIGN_DAYS
    lifted = rate * _lift(persons)
    periods = ((0, launch, rate), (launch, close, lifted), (close, clock.days, rate))
    found = [
        _arrivals(rng, clock, pace, np.maximum(joined + 1, begin), np.minimum(churned, until))
        for begin, until, pace in periods
    ]
    taste, day = (np.concatenate(part) for part in zip(*found, strict=True))
    web = rng.random(len(taste)) < persons["web_share"][taste]
    strangers = np.flatnonzero(_some(rng, len(taste), ANONYMOUS_RECEIPTS * (1 - web.mean())))
    columns = {
        "person": np.concatenate([taste, np.full(len(strangers), -1)]),
        "taste": np.concatenate([taste, rng.integers(len(rate), size=len(strangers))]),
        "day": np.concatenate([day, day[strangers]]),
        "web": np.concatenate([web, np.zeros(len(strangers), dtype=bool)]),
    }
    columns["at"] = clock.instant(columns["day"], _daytime(rng, len(columns["day"])))
    return _rows(columns, np.argsort(columns["at"], kind="stable"))


def _lift(persons: Columns) -> Array:
    """The factor on each person's rate during the campaign."""
    return np.where(persons["arm"] == 1, 1 + persons["effect"], 1.0)


def _categories(rng: Rng, persons: Columns, taste: Array) -> Array:
    cumulative = np.cumsum(persons["affinity"], axis=1)[taste]
    category: Array = (rng.random((len(taste), 1)) > cumulative[:, :-1]).sum(axis=1)
    return category


def _goods(rng: Rng, persons: Columns, taste: Array, category: Array) -> Array:
    """Products of the categories, dearer ones for those who like them."""
    place = np.clip(persons["basket"][taste] + rng.normal(0, 0.25, len(taste)), 0, 0.999)
    product: Array = category * PRODUCTS_PER_CATEGORY + (place * PRODUCTS_PER_CATEGORY).astype(int)
    return product


def _lines(rng: Rng, persons: Columns, orders: Columns) -> Columns:
    """The lines of the orders, in their order; the first line shows what the order was for."""
    count = 1 + rng.poisson(0.5, len(orders["at"]))
    order = np.repeat(np.arange(len(count)), count)
    number = np.arange(len(order)) - np.repeat(np.cumsum(count) - count, count)
    taste = orders["taste"][order]
    purpose = _with_companions(rng, orders, _categories(rng, persons, orders["taste"]))
    aside = (number > 0) & (rng.random(len(order)) < 0.5)
    category = np.where(aside, _categories(rng, persons, taste), purpose[order])
    base, slope = HABITS.discounts
    tempted = rng.random(len(order)) < base + slope * persons["discount_sensitivity"][taste]
    share = rng.choice([0.05, 0.1, 0.1, 0.15, 0.2, 0.3, 0.5], len(order))
    return {
        "order": order,
        "number": number + 1,
        "product": _goods(rng, persons, taste, category),
        "quantity": 1 + rng.poisson(0.25, len(order)),
        "discount": np.where(tempted, share, 0.0),
    }


def _with_companions(rng: Rng, orders: Columns, category: Array) -> Array:
    """After a main product (cushions), the next order is often for its companion (covers)."""
    by_person = np.lexsort((orders["at"], orders["person"]))
    person, day = orders["person"][by_person], orders["day"][by_person]
    previous = np.roll(category[by_person], 1)
    soon = (person == np.roll(person, 1)) & (person >= 0)
    soon &= day - np.roll(day, 1) <= COMPANION_DAYS
    tempted = soon & (previous % 2 == 0) & (rng.random(len(person)) < COMPANION_SHARE)
    result = category.copy()
    result[by_person[tempted]] = previous[tempted] + 1
    return result


def _cookies(rng: Rng, persons: Columns) -> Columns:
    """One to three browsers per person; `cookie` may be another's: some households share one."""
    count = rng.choice([1, 2, 3], len(persons["rank"]), p=[0.5, 0.35, 0.15])
    count = np.where(persons["browses"], count, 0)
    person = np.repeat(np.arange(len(count)), count)
    first = np.cumsum(count) - count
    head = persons["head"][person]
    shares = (first[person] == np.arange(len(person))) & (persons["rank"][person] == 1)
    shares &= persons["browses"][head] & (rng.random(len(person)) < 0.15)
    label = rng.permutation(10 * len(person))[: len(person)]
    return {
        "person": person,
        "count": count,
        "first": first,
        "label": np.where(shares, label[first[head]], label),
        "browser": rng.integers(len(BROWSERS) - BOTS, size=len(person)),
    }


def _sessions(
    rng: Rng,
    persons: Columns,
    orders: Columns,
    lines: Columns,
    cookies: Columns,
    clock: Clock,
) -> Columns:
    """Visits of the website: idle ones, and those that end in a web order."""
    idle, day = _arrivals(
        rng, clock, persons["visit_rate"], persons["joined"] + 1, persons["churned"]
    )
    seen = np.flatnonzero(orders["web"] & persons["browses"][orders["taste"]])
    starts = np.flatnonzero(lines["number"] == 1)
    wish = _goods(rng, persons, idle, _categories(rng, persons, idle))
    person = np.concatenate([idle, orders["person"][seen]])
    buys = np.arange(len(person)) >= len(idle)
    log_in = rng.random(len(person)) < np.where(buys, 0.9, LOG_IN)
    draw = (rng.random(len(person)) * cookies["count"][person]).astype(int)
    starts_at = clock.instant(day, _daytime(rng, len(day)))
    ahead = orders["at"][seen] - np.timedelta64(600, "s")
    return {
        "person": person,
        "day": np.concatenate([day, orders["day"][seen]]),
        "at": np.concatenate([starts_at, ahead]),
        "product": np.concatenate([wish, lines["product"][starts[seen]]]),
        "buys": buys,
        "abandons": ~buys & (rng.random(len(person)) < 0.08),
        "logged_in": log_in & persons["logs_in"][person],
        "cookie": cookies["first"][person] + draw,
    }


def _mails(rng: Rng, persons: Columns, subscribers: Columns, clock: Clock) -> Columns:
    """Weekly mailings, each to a sample of the subscribers; who has left hardly opens any."""
    sent_at = clock.instant(clock.mailings, np.full(len(clock.mailings), MAILED_AT))
    due = (subscribers["created"][:, None] < sent_at) & (subscribers["person"] >= 0)[:, None]
    subscriber, week = np.nonzero(due & (rng.random(due.shape) < 0.4))
    person, day = subscribers["person"][subscriber], clock.mailings[week]
    alive = persons["churned"][person] > day
    share = persons["engagement"][person] * np.where(alive, 1.0, HABITS.opens_after_leaving)
    opened = rng.random(len(person)) < share
    clicked = opened & (rng.random(len(person)) < 0.2)
    return {
        "subscriber": subscriber, "person": person, "day": day, "week": week,
        "opened": opened, "clicked": clicked,
    }  # fmt: skip


# ---- the files of the silos ---------------------------------------------------------------------


def _crm(rng: Rng, world: World) -> dict[str, pa.Table]:
    return {
        "crm/customers.csv": _customers(rng, world),
        "crm/consents.csv": _consents(rng, world),
        "crm/exposures.csv": _exposures(world),
    }


def _customers(rng: Rng, world: World) -> pa.Table:
    both = _crm_versions(rng, world.persons, world.records, world.clock)
    return pa.table({
        "crm_id": both["id"],
        "first_name": _text(both["first"]),
        "last_name": _text(both["last"]),
        "email": _text(both["email"]),
        "phone": _text(both["phone"]),
        "birth_date": both["born"],
        "street": _text(both["street"]),
        "postcode": _text(both["postcode"]),
        "city": _text(both["city"]),
        "loyalty_no": _text(both["card"]),
        "created_at": _iso(both["created"]),
        "updated_at": _iso(both["updated"]),
    })  # fmt: skip


def _crm_versions(rng: Rng, persons: Columns, records: dict[str, Columns], clock: Clock) -> Columns:
    """The CRM's records, and some again as stated anew later, under the same id; by `updated`."""
    crm, end = records["crm"], clock.end
    rows = len(crm["id"])
    updated = crm["created"] + ((end - crm["created"]) * 0.5 * rng.random(rows)).astype("m8[s]")
    crm = crm | {"updated": updated, "card": _cards(rng, crm["person"], records["pos"])}
    redone = np.flatnonzero(_some(rng, rows, ERRORS.corrected) & (crm["person"] >= 0))
    again = _rows(crm, redone)
    today = np.full(len(redone), clock.days)
    again |= _identity(rng, persons, again["person"], today, "crm")
    again["updated"] += ((end - again["updated"]) * 0.5).astype("m8[s]")
    both = {name: np.concatenate([crm[name], again[name]]) for name in crm}
    return _rows(both, np.argsort(both["updated"], kind="stable"))


def _latest(versions: Columns) -> Columns:
    """The last version of each record."""
    rows = len(versions["id"])
    _, first_from_end = np.unique(versions["id"][::-1], return_index=True)
    return _rows(versions, rows - 1 - first_from_end)


def _cards(rng: Rng, person: Array, pos: Columns) -> Array:
    """The numbers of the cards that two thirds of the card holders showed to the CRM."""
    holders, first = np.unique(pos["person"], return_index=True)
    place = np.minimum(np.searchsorted(holders, person), len(holders) - 1)
    shown = (holders[place] == person) & (person >= 0) & (rng.random(len(person)) < 0.66)
    return np.where(shown, pos["id"][first[place]], "")


def _consents(rng: Rng, world: World) -> pa.Table:
    """A choice per purpose when the record is made; some grants are withdrawn later."""
    crm, end = world.records["crm"], world.clock.end
    rows = len(crm["id"])
    record = np.tile(np.arange(rows), 2)
    purpose = np.repeat(np.array(["marketing", "profiling"]), rows)
    granted = rng.random(2 * rows) < np.where(purpose == "marketing", 0.72, 0.82)
    withdrawn = np.flatnonzero(granted & (rng.random(2 * rows) < 0.06))
    at = crm["created"][record]
    later = at + ((end - at) * rng.random(len(at))).astype("m8[s]")
    return pa.table({
        "crm_id": crm["id"][np.concatenate([record, record[withdrawn]])],
        "purpose": np.concatenate([purpose, purpose[withdrawn]]),
        "granted": np.concatenate([granted, np.zeros(len(withdrawn), dtype=bool)]),
        "at": _iso(np.concatenate([at, later[withdrawn]])),
    })  # fmt: skip


def _exposures(world: World) -> pa.Table:
    """The arm of each person in the campaign, by the person's first CRM record."""
    crm, arms, clock = world.records["crm"], world.persons["arm"], world.clock
    person, first = np.unique(crm["person"], return_index=True)
    inside = (person >= 0) & (arms[person] >= 0)
    arm = np.array(["control", "treatment"])[arms[person[inside]]]
    launch = clock.instant(np.full(len(arm), clock.campaign_day), np.array(0))
    return pa.table({
        "campaign_id": np.full(len(arm), CAMPAIGN),
        "crm_id": crm["id"][first[inside]],
        "arm": arm,
        "at": _iso(launch),
    })  # fmt: skip


def _shop(rng: Rng, world: World) -> dict[str, pa.Table]:
    shop, orders, products = world.records["shop"], world.orders, world.products
    sold = _with_returns(rng, world, _of_orders(world.lines, orders["web"]))
    # One account per order: drawn for each order, then looked up by its lines.
    account = np.zeros(len(orders["at"]), dtype=int)
    web = np.flatnonzero(orders["web"])
    account[web] = _record_of(rng, shop, orders["person"][web], orders["at"][web])
    table = pa.table({
        "order_id": _order_ids("O", sold),
        "line_no": sold["number"],
        "account_id": pa.array(shop["id"]).take(pa.array(account[sold["order"]])),
        "ordered_at": _iso(sold["at"]),
        "sku": pa.array(products["sku"]).take(pa.array(sold["product"])),
        "quantity": sold["quantity"],
        "unit_price": products["price"][sold["product"]],
        "discount": sold["discount"],
    })  # fmt: skip
    return {
        "shop/accounts.jsonl": _accounts(shop),
        "shop/order_lines.jsonl": _redelivered(rng, table),
    }


def _accounts(shop: Columns) -> pa.Table:
    return pa.table({
        "account_id": shop["id"],
        "email": _text(shop["email"]),
        "name": _struct(first=_text(shop["first"]), last=_text(shop["last"])),
        "phone": _text(shop["phone"]),
        "birthday": pa.array(shop["born"]).cast(pa.string()),
        "address": _struct(**{name: _text(shop[name]) for name in ("street", "postcode", "city")}),
        "registered_at": _iso(shop["created"]),
    })  # fmt: skip


def _of_orders(lines: Columns, chosen: Array) -> Columns:
    return _rows(lines, chosen[lines["order"]])


def _with_returns(rng: Rng, world: World, lines: Columns) -> Columns:
    """The lines and, three days to three weeks after some, their returns: all by time."""
    orders, end = world.orders, world.clock.end
    lines = lines | {"at": orders["at"][lines["order"]]}
    prone = world.persons["returns"][orders["taste"][lines["order"]]]
    back = lines["at"] + rng.integers(3 * 86_400, 21 * 86_400, len(prone)).astype("m8[s]")
    returned = np.flatnonzero((rng.random(len(prone)) < prone) & (back < end))
    again = _rows(lines, returned)
    again |= {"at": back[returned], "quantity": -again["quantity"]}
    both = {name: np.concatenate([lines[name], again[name]]) for name in lines}
    return _rows(both, np.argsort(both["at"], kind="stable"))


def _order_ids(prefix: str, lines: Columns) -> pa.Array:
    """The order's number; each returned line has one of its own."""
    numbers = pc.utf8_lpad(pc.cast(pa.array(lines["order"] + 1), pa.string()), 8, "0")
    sale = pc.binary_join_element_wise(prefix, numbers, "")
    part = pc.cast(pa.array(lines["number"]), pa.string())
    back = pc.binary_join_element_wise("R-", sale, "-", part, "")
    return pc.if_else(pa.array(lines["quantity"] < 0), back, sale)


def _pos(rng: Rng, world: World) -> dict[str, pa.Table]:
    return {
        "pos/members.csv": _members(world.records["pos"]),
        "pos/receipts.csv": _receipts(rng, world),
    }


def _members(pos: Columns) -> pa.Table:
    return pa.table({
        "card_no": pos["id"],
        "surname": _text(pos["last"]),
        "forename": _text(pos["first"]),
        "dob": _local(pos["born"].astype("M8[s]"), "%d/%m/%Y"),
        "mobile": _text(pos["phone"]),
        "postcode": _text(pos["postcode"]),
        "joined": _local(pos["created"], "%d/%m/%Y"),
    })  # fmt: skip


def _receipts(rng: Rng, world: World) -> pa.Table:
    pos, orders, products = world.records["pos"], world.orders, world.products
    sold = _of_orders(world.lines, ~orders["web"])
    order, rows = sold["order"], len(sold["order"])
    person, at = orders["person"], orders["at"]
    carded = np.flatnonzero(~orders["web"] & (person >= 0))
    card = np.full(len(at), -1)
    card[carded] = _record_of(rng, pos, person[carded], at[carded])
    # Wrong dates and prices befall lines, but only strangers' dates: the truth stays observable.
    strangers = np.flatnonzero(~orders["web"] & (person < 0))
    wrong = strangers[_some(rng, len(strangers), ERRORS.future)]
    shown = at.copy()
    shown[wrong] = np.datetime64("2062-01-01T12:00:00")
    price = np.round(products["price"][sold["product"]] * (1 - sold["discount"]), 2)
    price = np.where(_some(rng, rows, ERRORS.negative_price), -price, price)
    store = rng.integers(len(STORES), size=len(world.persons["rate"]))[orders["taste"]]
    table = pa.table({
        "receipt_no": _order_ids("K", sold),
        "line": sold["number"],
        "card_no": _taken(pos["id"], card[order]),
        "store": _taken(np.array(STORES), store[order]),
        "time": _local(shown[order], "%d/%m/%Y %H:%M"),
        "sku": _taken(products["sku"], sold["product"]),
        "qty": sold["quantity"],
        "price": price,
        "received_at": _iso(_received(rng, at)[order]),
    })  # fmt: skip
    return _redelivered(rng, table)


def _received(rng: Rng, at: Array) -> Array:
    """The tills report at 23 o'clock; some only days later."""
    evening = at.astype("M8[D]").astype("M8[s]") + np.timedelta64(23, "h")
    delay = rng.integers(1, 8, len(at)).astype("m8[D]")
    return np.where(_some(rng, len(at), ERRORS.late), evening + delay, evening)


def _newsletter(rng: Rng, world: World) -> dict[str, pa.Table]:
    subscribers = world.records["newsletter"]
    rows = len(subscribers["id"])
    status = rng.choice(["subscribed", "unsubscribed", "bounced"], rows, p=[0.86, 0.11, 0.03])
    table = pa.table({
        "subscriber_id": subscribers["id"],
        "email": _text(subscribers["email"]),
        "first_name": _text(subscribers["first"]),
        "last_name": _text(subscribers["last"]),
        "signup_at": _local(subscribers["created"], "%Y-%m-%d %H:%M:%S"),
        "status": status,
    })  # fmt: skip
    events = _redelivered(rng, _mail_events(rng, world))
    return {"newsletter/subscribers.csv": table, "newsletter/events.csv": events}


def _mail_events(rng: Rng, world: World) -> pa.Table:
    """What happened to the mails: sent, opened some hours later, clicked."""
    mails, clock = world.mails, world.clock
    hours = rng.exponential(6 * 3600, len(mails["day"])).astype("m8[s]")
    parts = [
        np.arange(len(hours)),
        np.flatnonzero(mails["opened"]),
        np.flatnonzero(mails["clicked"]),
    ]
    mail = np.concatenate(parts)
    kind = np.repeat(np.arange(3), [len(part) for part in parts])
    sent_at = clock.instant(mails["day"], np.full(len(hours), MAILED_AT))
    at = sent_at[mail] + np.where(kind > 0, hours[mail], 0) + np.where(kind > 1, 40, 0)
    order = np.flatnonzero(at < clock.end)
    order = order[np.argsort(at[order], kind="stable")]
    shown = at[order]
    shown[_some(rng, len(order), ERRORS.future)] = np.datetime64("2062-01-01T12:00:00")
    campaigns = np.strings.add("weekly_", sent_at[mail[order]].astype("M8[D]").astype(str))
    subscriber = mails["subscriber"][mail[order]]
    return pa.table({
        "event_id": _ids("E", len(order)),
        "subscriber_id": _taken(world.records["newsletter"]["id"], subscriber),
        "type": _taken(np.array(["email_sent", "email_opened", "email_clicked"]), kind[order]),
        "at": _local(shown, "%Y-%m-%d %H:%M:%S"),
        "campaign": pa.array(campaigns, pa.string()),
    })  # fmt: skip


def _web(rng: Rng, world: World) -> dict[str, pa.Table]:
    """The hits, in a file per year of their arrival, whatever date they claim."""
    shop, products = world.records["shop"], world.products
    hits = _with_bots(rng, _hits(rng, world.sessions), world.cookies, world.clock)
    hits = _rows(hits, np.argsort(hits["at"], kind="stable"))
    account = np.full(len(hits["at"]), -1)
    known = np.flatnonzero(hits["logged_in"])
    account[known] = _record_of(rng, shop, hits["person"][known], hits["at"][known])
    shown = hits["at"].copy()
    shown[_some(rng, len(shown), ERRORS.future)] = np.datetime64("2062-01-01T12:00:00")
    product = hits["product"]
    category = np.where(product >= 0, product // PRODUCTS_PER_CATEGORY, -1)
    table = pa.table({
        "hit_id": _ids("H", len(product)),
        "cookie": _cookie_names(hits["label"]),
        "at": pa.array(shown.astype("M8[us]"), pa.timestamp("us", "UTC")),
        "type": _taken(np.array(HIT_TYPES), hits["type"]),
        "sku": _taken(products["sku"], np.where(hits["type"] == SEARCH, -1, product)),
        "category": _taken(np.array(CATEGORIES), category),
        "account_id": _taken(shop["id"], account),
        "user_agent": _taken(np.array(BROWSERS), hits["browser"]),
    })  # fmt: skip
    year = hits["at"].astype("M8[Y]").astype(int) + 1970
    return {
        f"web/hits-{y}.parquet": _redelivered(rng, table.filter(pa.array(year == y)))
        for y in np.unique(year)
    }


HIT_TYPES = ("page_view", "product_view", "search", "cart_add", "checkout", "login")
PAGE, VIEW, SEARCH, CART, CHECKOUT, LOGIN = range(6)


def _hits(rng: Rng, sessions: Columns) -> Columns:
    """The hits of each session: looking around, perhaps a login, a cart, a checkout."""
    every = np.arange(len(sessions["at"]))
    looks = np.repeat(every, 1 + rng.poisson(1.0, len(every)))
    carts = np.flatnonzero(sessions["buys"] | sessions["abandons"])
    parts: list[tuple[Array, Any, int, int]] = [
        (looks, rng.choice([PAGE, VIEW, SEARCH], len(looks), p=[0.45, 0.43, 0.12]), 0, 400),
        (np.flatnonzero(sessions["logged_in"]), LOGIN, 0, 60),
        (carts, CART, 400, 500),
        (np.flatnonzero(sessions["buys"]), CHECKOUT, 500, 590),
    ]
    session = np.concatenate([part[0] for part in parts])
    kind = np.concatenate([np.broadcast_to(kinds, len(part)) for part, kinds, _, _ in parts])
    offset = np.concatenate([rng.integers(low, high, len(part)) for part, _, low, high in parts])
    about_product = np.isin(kind, [VIEW, SEARCH, CART])
    return {
        "at": sessions["at"][session] + offset.astype("m8[s]"),
        "type": kind,
        "product": np.where(about_product, sessions["product"][session], -1),
        **{name: sessions[name][session] for name in ("person", "cookie", "logged_in")},
    }


def _with_bots(rng: Rng, hits: Columns, cookies: Columns, clock: Clock) -> Columns:
    """The hits with their cookies' labels, and a crowd of hits by a few crawlers."""
    rows = max(50, round(ERRORS.bot_hits * len(hits["at"])))
    crawler = rng.integers(1 + len(cookies["count"]) // 1000, size=rows)
    bots = {
        "at": clock.instant(rng.integers(clock.days, size=rows), rng.integers(86_400, size=rows)),
        "type": np.full(rows, VIEW),
        "product": rng.integers(len(CATEGORIES) * PRODUCTS_PER_CATEGORY, size=rows),
        "person": np.full(rows, -1),
        "logged_in": np.zeros(rows, dtype=bool),
        "label": 10 * len(cookies["person"]) + crawler,
        "browser": len(BROWSERS) - 1 - crawler % BOTS,
    }
    hits = hits | {name: cookies[name][hits["cookie"]] for name in ("label", "browser")}
    return {name: np.concatenate([hits[name], column]) for name, column in bots.items()}


# ---- the records alone --------------------------------------------------------------------------

STATED = {
    "given_name": "first", "surname": "last", "email": "email", "phone": "phone",
    "birth_date": "born", "street": "street", "postcode": "postcode", "city": "city",
}  # fmt: skip
NOT_IN_FILE: dict[str, tuple[str, ...]] = {
    "crm": (),
    "shop": (),
    "pos": ("email", "street", "city"),
    "newsletter": ("phone", "birth_date", "street", "postcode", "city"),
}


def _as_delivered(source: str, records: Columns) -> pa.Table:
    """The person fields that the silo's file has, under the names that the ingestion gives them."""
    nothing = pa.nulls(len(records["id"]), pa.string())
    stated = set(STATED) - set(NOT_IN_FILE[source])
    fields = {name: _written(records[STATED[name]]) for name in stated}
    return pa.table({
        **_keys(source, records),
        **{name: fields.get(name, nothing) for name in PERSON_FIELDS},
        **_times(records),
    })  # fmt: skip


def _written(values: Array) -> pa.Array:
    return _text(values) if values.dtype.kind == "U" else pa.array(values).cast(pa.string())


def _keys(source: str, records: Columns) -> Columns:
    return {"source": np.full(len(records["id"]), source), "source_record_id": records["id"]}


def _times(records: Columns) -> dict[str, pa.Array]:
    created, utc = records["created"].astype("M8[us]"), pa.timestamp("us", "UTC")
    updated = records.get("updated", created).astype("M8[us]")
    return {"event_timestamp": pa.array(updated, utc), "ingested_at": pa.array(created, utc)}


def _own_identifiers(source: str, records: Columns) -> pa.Table:
    return _identifiers(source, records["id"], source, records)


def _card_identifiers(crm: Columns) -> pa.Table:
    """The numbers of the point of sale that CRM records note."""
    noted = _rows(crm, crm["card"] != "")
    return _identifiers("pos", noted["card"], "crm", noted)


def _identifiers(kind: str, identifier: Array, source: str, records: Columns) -> pa.Table:
    types = np.full(len(identifier), kind)
    named = {"identifier_type": types, "identifier": identifier}
    table = pa.table({**named, **_keys(source, records), **_times(records)})
    return table.cast(arrow_schema("identifiers"))


# ---- the truth ----------------------------------------------------------------------------------


def _truth(world: World) -> dict[str, pa.Table]:
    persons, cookies, clock = world.persons, world.cookies, world.clock
    shared = pa.table({"cookie": _cookie_names(cookies["label"]), "person_id": cookies["person"]})
    return {
        "truth/persons.parquet": _hidden_traits(persons, clock),
        "truth/records.parquet": pa.concat_tables(
            _true_persons(*item) for item in world.records.items()
        ),
        "truth/cookies.parquet": shared,
        "truth/outcomes.parquet": _outcomes(world),
        "truth/uplift.parquet": _uplift(persons, clock),
    }


def _hidden_traits(persons: Columns, clock: Clock) -> pa.Table:
    hidden = ("rate", "quits", "visit_rate", "web_share", "basket", "engagement",
              "discount_sensitivity", "returns", "effect", "arm")  # fmt: skip
    days = {f"{name}_at": _utc(clock, persons[name]) for name in ("joined", "churned")}
    affinities = {
        f"affinity_{name.replace(' ', '_')}": persons["affinity"][:, i]
        for i, name in enumerate(CATEGORIES)
    }
    return pa.table({
        "person_id": np.arange(len(persons["rate"])),
        "household_id": persons["household"],
        **{name: persons[name] for name in ("first", "last", "born")},
        **days,
        **{name: persons[name] for name in hidden},
        **affinities,
    })  # fmt: skip


def _true_persons(source: str, records: Columns) -> pa.Table:
    """Who is behind each record; nobody (null) behind a test account."""
    return pa.table({
        **_keys(source, records),
        "person_id": pa.array(records["person"], mask=records["person"] < 0),
    })  # fmt: skip


def _outcomes(world: World) -> pa.Table:
    """Every 30 days, what those who had joined would do, and did."""
    days = [world.clock.days - 30 * k for k in range(1, 15)]
    parts = [_outcome(world, day, 30, observed=day == days[0]) for day in days]
    parts += [_outcome(world, day, 90, observed=day == days[2]) for day in days[2:]]
    return pa.concat_tables(parts)


def _outcome(world: World, day: int, horizon: int, observed: bool) -> pa.Table:
    """What people would do from a day, what they did, and what of it could be `observed`."""
    persons, orders, clock = world.persons, world.orders, world.clock
    known = np.flatnonzero(persons["joined"] < day)
    buys = _purchase_probability(persons, clock, day, horizon, _lift(persons))[known]
    inside = (orders["day"] >= day) & (orders["day"] < day + horizon) & (orders["person"] >= 0)
    bought = np.bincount(orders["person"][inside], minlength=len(persons["rate"]))[known] > 0
    foreseen = _foreseen(world, known, day, horizon) if observed else np.full(len(known), np.nan)
    churn = horizon == 90
    return pa.table({
        "person_id": known,
        "as_of": _utc(clock, np.full(len(known), day)),
        "outcome": np.full(len(known), "churn_90d" if churn else "purchase_30d"),
        "probability": 1 - buys if churn else buys,
        "observable": pa.array(1 - foreseen if churn else foreseen, from_pandas=True),
        "happened": ~bought if churn else bought,
    })  # fmt: skip


def _foreseen(world: World, known: Array, day: int, horizon: int) -> Array:
    """The chance of an order, for all that silos had seen of these people until a day."""
    clock = world.clock
    found = np.zeros(len(known))
    able = world.persons["rate"][known] > 0  # the others are in no silo that sells
    calendar = Calendar(clock.season, clock.campaign(), clock.mailings, HABITS)
    seen = _seen(world, known[able], day)
    found[able] = purchase_probability(seen, calendar, day, horizon)
    return found


def _seen(world: World, people: Array, day: int) -> Seen:
    """What silos had seen of people until a day."""
    persons, orders, lines, clock = world.persons, world.orders, world.lines, world.clock
    past = orders["day"] < day
    of_line, line_past = orders["person"][lines["order"]], past[lines["order"]]
    visitor, visited, linked = _visits_seen(world, day)
    buyer, bought = orders["person"][past], orders["day"][past]
    mails = _rows(world.mails, world.mails["day"] < day)
    in_campaign = past & clock.campaign()[orders["day"]]
    columns = {
        "joined": persons["joined"],
        "last": _last_day(persons, np.append(buyer, visitor), np.append(bought, visited)),
        "orders": _count(persons, buyer),
        "campaign_orders": _count(persons, orders["person"][in_campaign]),
        "lines": _count(persons, of_line[line_past]),
        "discounted": _count(persons, of_line[line_past & (lines["discount"] > 0)]),
        "visits": _count(persons, visitor),
        "linked": linked,
        "treated": _chance_of_treatment(world, day),
        "mails": _by_week(persons, mails, clock),
        "opened": _by_week(persons, _rows(mails, mails["opened"]), clock),
    }
    return Seen(**{name: column[people] for name, column in columns.items()})


def _visits_seen(world: World, day: int) -> tuple[Array, Array, Array]:
    """Visitors and days of the idle visits that can be linked, and their share in all visits.

    Those are the visits with a browser that has logged in as the person. Visits with the others of
    a person's browsers would have been linked too, had one of them logged in: a share of `LOG_IN`.
    """
    sessions, cookies, persons = world.sessions, world.cookies, world.persons
    before = sessions["day"] < day
    known = np.zeros(len(cookies["person"]), dtype=bool)
    known[sessions["cookie"][before & sessions["logged_in"]]] = True
    shown = before & ~sessions["buys"] & known[sessions["cookie"]]
    share = _count(persons, cookies["person"][known]) / np.maximum(cookies["count"], 1)
    able = persons["logs_in"] & persons["browses"]
    linked = np.where(able, share + LOG_IN * (1 - share), 0.0)
    return sessions["person"][shown], sessions["day"][shown], linked


def _count(persons: Columns, person: Array) -> Array:
    return np.bincount(person[person >= 0], minlength=len(persons["rate"]))


def _last_day(persons: Columns, person: Array, day: Array) -> Array:
    last = np.full(len(persons["rate"]), -10_000)
    np.maximum.at(last, person[person >= 0], day[person >= 0])
    return last


def _by_week(persons: Columns, mails: Columns, clock: Clock) -> Array:
    """The mails of each person in each mailing."""
    weeks = len(clock.mailings)
    each = np.bincount(
        mails["person"] * weeks + mails["week"], minlength=len(persons["rate"]) * weeks
    )
    return each.reshape(-1, weeks)


def _chance_of_treatment(world: World, day: int) -> Array:
    """Of each person, as known on a day: until it starts, a half of those whom the CRM knows."""
    if day > world.clock.campaign_day:
        return np.asarray(world.persons["arm"] == 1, dtype=float)
    crm, found = world.records["crm"], np.zeros(len(world.persons["rate"]))
    listed = (crm["created"] < world.clock.instant(np.array(day), np.array(0))) & (
        crm["person"] >= 0
    )
    found[crm["person"][listed]] = 0.5
    return found


def _purchase_probability(
    persons: Columns, clock: Clock, day: int, horizon: int, lift: Array
) -> Array:
    """The chance of an order in the days from `day`, for people of known traits and state.

    Each day, those who are still there and have not ordered yet stay silent with the Poisson
    probability of no order, and then some of them leave, silent forever.
    """
    waiting = (persons["churned"] > day).astype(float)
    silent = 1 - waiting
    days = slice(day, day + horizon)
    for season, campaign in zip(clock.season[days], clock.campaign()[days], strict=True):
        waiting = waiting * np.exp(-persons["rate"] * season * (lift if campaign else 1.0))
        silent += waiting * persons["quits"]
        waiting = waiting * (1 - persons["quits"])
    return np.asarray(1 - silent - waiting)


def _uplift(persons: Columns, clock: Clock) -> pa.Table:
    """How much more likely a purchase in the campaign's days is when treated than when not."""
    known = np.flatnonzero(persons["joined"] < clock.campaign_day)
    chance = partial(_purchase_probability, persons, clock, clock.campaign_day, CAMPAIGN_DAYS)
    effect = chance(1 + persons["effect"]) - chance(np.ones(len(persons["rate"])))
    return pa.table({"person_id": known, "true_effect": effect[known]})


# ---- tables and files ---------------------------------------------------------------------------


def _products(rng: Rng) -> Columns:
    """The products, by category and then by price."""
    rows = len(CATEGORIES) * PRODUCTS_PER_CATEGORY
    level = np.repeat([25, 15, 60, 6, 140, 18, 45, 12], PRODUCTS_PER_CATEGORY)
    price = np.round(level * rng.lognormal(0, 0.5, rows)) + 0.99
    category = np.repeat(np.array(CATEGORIES), PRODUCTS_PER_CATEGORY)
    series = _pick(rng, STEMS, rows)
    return {
        "sku": _join("SKU-", _digits(rng.permutation(9000)[:rows] + 1000, 4)),
        "name": _join(series, " ", category),
        "category": category,
        "price": np.sort(price.reshape(len(CATEGORIES), -1), axis=1).ravel(),
    }


def _rows(columns: Columns, chosen: Array) -> Columns:
    """Some rows of a table, by a mask or their positions."""
    return {name: column[chosen] for name, column in columns.items()}


def _text(values: Array) -> pa.Array:
    """Texts, with nothing where they are empty."""
    return pa.array(values, pa.string(), mask=values == "")


def _taken(values: Array, index: Array) -> pa.Array:
    """Values by index, with nothing where it is negative."""
    return pa.array(values, pa.string()).take(pa.array(index, mask=index < 0))


def _struct(**fields: pa.Array) -> pa.Array:
    return pa.StructArray.from_arrays(list(fields.values()), names=list(fields))


def _ids(prefix: str, rows: int) -> pa.Array:
    numbers = pc.utf8_lpad(pc.cast(pa.array(np.arange(1, rows + 1)), pa.string()), 9, "0")
    return pc.binary_join_element_wise(prefix, numbers, "")


def _cookie_names(label: Array) -> pa.Array:
    numbers = pc.utf8_lpad(pc.cast(pa.array(label), pa.string()), 8, "0")
    return pc.binary_join_element_wise("ck", numbers, "-")


def _iso(at: Array) -> pa.Array:
    return pc.binary_join_element_wise(pa.array(np.datetime_as_string(at, unit="s")), "Z", "")


def _local(at: Array, form: str) -> pa.Array:
    """Timestamps in another silo's way of writing."""
    return pc.strftime(pa.array(at.astype("M8[s]")), format=form)


def _utc(clock: Clock, day: Array) -> pa.Array:
    at = clock.instant(day, np.zeros(len(day), dtype=int)).astype("M8[us]")
    return pa.array(at, pa.timestamp("us", "UTC"))


def _redelivered(rng: Rng, table: pa.Table) -> pa.Table:
    """The table with a few rows twice."""
    again = np.flatnonzero(_some(rng, table.num_rows, ERRORS.redelivered))
    return table.take(pa.array(np.sort(np.concatenate([np.arange(table.num_rows), again]))))


def _write(path: Path, table: pa.Table) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".jsonl":
        _write_json_lines(path, table)
    else:
        form = pyarrow.csv.WriteOptions(
            delimiter=";" if path.parent.name == "pos" else ",",
            quoting_style="none",
            quoting_header="none",
        )
        pyarrow.csv.write_csv(table, path, form)
    return int(table.num_rows)


def _write_json_lines(path: Path, table: pa.Table) -> None:
    with path.open("w", encoding="utf-8") as file:
        for batch in table.to_batches(max_chunksize=100_000):
            batch.to_pandas().to_json(file, orient="records", lines=True)
