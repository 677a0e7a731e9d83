"""People decide on a handful of records: what they are shown before is what the next link gives."""

import csv
import datetime as dt
import math
import re
import shutil

import pytest
from conftest import ROOT, rows, utc
from test_linkage import households

from cdp_ml.config import Engine, IdentitySpec, load_spec
from cdp_ml.engine import connect
from cdp_ml.errors import ConfigError, LinkageError
from cdp_ml.identity import pictures, review
from cdp_ml.identity.crosswalk import assign_customer_ids
from cdp_ml.identity.explain import explain, history, why
from cdp_ml.identity.linkage import link
from cdp_ml.identity.review import Identity, merge, split, undo, what_would_change, write_decision
from cdp_ml.lake import Lake

SPEC = load_spec(ROOT / "models" / "identity.yaml", IdentitySpec)
LINKED = ("edges", "compared", "reviews")
PEOPLE = {
    "ada": {"surname": "ashton", "email": "ada@post.example", "birth_date": dt.date(1980, 5, 1)},
    "ben": {"surname": "burley", "email": "ben@post.example", "birth_date": dt.date(1975, 3, 9)},
    # Who shares an e-mail with ada, and is another one.
    "zoe": {"surname": "ashton", "email": "ada@post.example", "birth_date": dt.date(1950, 9, 2)},
    "cleo": {"surname": "caldby", "email": "cleo@post.example", "birth_date": dt.date(1991, 7, 7)},
}
FIRST = ("crm:ada", "crm:ben", "crm:cleo", "shop:ada", "shop:ben", "news:ada")


def record(key):
    """A record such as 'shop:ada', or 'shop:ada2' of the same person; CRM records came first."""
    source, number = key.split(":")
    name = number.rstrip("0123456789")
    came = utc(2026, 1, 1 if source == "crm" else 2)
    known = {"source": source, "source_record_id": number, "ingested_at": came}
    return {**known, "given_name": name, **PEOPLE[name]}


class World:
    """A lake with what a refresh knows of identity, and what the identity step does to it."""

    def __init__(self, root, con):
        self.lake, self.con, self.model, self.day = Lake(root / "lake"), con, None, 0

    def refresh(self, *keys, train=False):
        """Link these records, as the step `identity` does; on another day each time."""
        self.lake.write("records", rows("records", *map(record, keys)))
        return self.link(None if train else self.model)

    def link(self, model):
        self.day += 1
        self.lake.renew("overrides")
        former = {t: self.lake.read(t, self.con) for t in LINKED} if model else None
        at = utc(2026, 6, self.day)
        linkage = link(
            self.lake.read("records", self.con),
            self.lake.read("identifiers", self.con),
            SPEC,
            self.con,
            model=model,
            overrides=self.lake.arrow("overrides"),
            former=former,
            known_at=at,
        )
        crosswalk = self.lake.read("crosswalk", self.con)
        assigned = assign_customer_ids(linkage.clusters, crosswalk, at, self.con)
        for table in LINKED:
            gone = linkage.gone[table] if linkage.gone else None
            if former:
                self.lake.amend(table, getattr(linkage, table), self.con, gone)
            else:
                self.lake.write(table, getattr(linkage, table))
        self.lake.amend("crosswalk", assigned.links, self.con, assigned.former)
        self.lake.amend("identity_log", assigned.log, self.con)
        self.model = linkage.model
        return self.known

    @property
    def known(self):
        """As a reader opens what was published."""
        return Identity(Lake(self.lake.root, dict(self.lake.versions)), self.con, SPEC, self.model)

    def decide(self, decision):
        write_decision(self.known, decision)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    made = World(tmp_path_factory.mktemp("world"), connect(Engine()))
    made.refresh(*FIRST)
    return made


@pytest.fixture
def world(tmp_path, con, template):
    """A copy of a world of six records and three people."""
    shutil.copytree(template.lake.root, tmp_path / "lake")
    made = World(tmp_path, con)
    made.lake.versions.update(template.lake.versions)
    made.model, made.day = template.model, template.day
    return made


def ids(known):
    """The customer of each record."""
    links = known.con.to_pyarrow(known.links()).to_pylist()
    return {r["record"]: r["customer_id"] for r in links}


def people(known):
    """The customers as sets of records."""
    found = {}
    for name, customer in ids(known).items():
        found.setdefault(customer, set()).add(name)
    return set(map(frozenset, found.values()))


def moves(change):
    return {m["record"]: (m["customer_id"], m["becomes"]) for m in change.moves.to_pylist()}


def decided(known):
    return {
        (r["record_l"], r["record_r"]): r["decision"] for r in review.standing(known).to_pylist()
    }


def assert_foretold(world, decision, *keys):
    """What would change is what the next link makes of the decision; returns what it became."""
    before, foretold = ids(world.known), moves(what_would_change(world.known, decision))
    world.decide(decision)
    world.refresh(*(keys or FIRST))
    after = ids(world.known)
    assert foretold == {r: (c, after[r]) for r, c in before.items() if after[r] != c}
    return after


ADA, BEN, CLEO = (
    frozenset({"crm:ada", "shop:ada", "news:ada"}),
    frozenset({"crm:ben", "shop:ben"}),
    frozenset({"crm:cleo"}),
)


# ---- merge, split, undo -------------------------------------------------------------------------


def test_a_merge_is_one_pair_of_the_records_that_were_known_first(world):
    known = world.known
    assert people(known) == {ADA, BEN, CLEO}
    made = merge(known, ids(known)["shop:ada"], ids(known)["shop:ben"], "eve", "they phoned")
    (row,) = made.to_pylist()
    assert (row["record_l"], row["record_r"]) == ("crm:ada", "crm:ben")
    assert (row["decision"], row["actor"], row["reason"]) == ("must-link", "eve", "they phoned")
    (row,) = merge(known, "shop:ben", "news:ada", "eve").to_pylist()
    assert (row["record_l"], row["record_r"]) == ("news:ada", "shop:ben")


def test_a_merge_retires_the_smaller_customer_as_foretold(world):
    before = ids(world.known)
    decision = merge(world.known, before["crm:ada"], before["crm:ben"], "eve")
    (move, *_) = what_would_change(world.known, decision).moves.to_pylist()
    assert (move["retires"], move["is_new"]) == (True, False)
    after = assert_foretold(world, decision)
    assert people(world.known) == {ADA | BEN, CLEO}
    assert after["crm:ben"] == before["crm:ada"]


def test_what_would_change_writes_nothing(world):
    versions = dict(world.lake.versions)
    what_would_change(world.known, merge(world.known, "crm:ada", "crm:ben", "eve"))
    assert review.all_overrides(world.known).num_rows == 0
    assert world.lake.versions == versions
    world.refresh(*FIRST)
    assert people(world.known) == {ADA, BEN, CLEO}


def test_a_merge_survives_a_full_link_with_a_newly_trained_model(world):
    world.decide(merge(world.known, "crm:ada", "crm:ben", "eve"))
    world.refresh(*FIRST, "shop:cleo", train=True)
    assert people(world.known) == {ADA | BEN, CLEO | {"shop:cleo"}}


def test_an_undone_merge_gives_the_former_customers_as_foretold(world):
    before = ids(world.known)
    decision = merge(world.known, "crm:ada", "crm:ben", "eve")
    assert_foretold(world, decision)
    after = assert_foretold(world, undo(world.known, decision["override_id"][0].as_py(), "mia"))
    assert people(world.known) == {ADA, BEN, CLEO}
    assert after["crm:ada"] == before["crm:ada"]
    (row,) = review.decisions(world.known).to_pylist()
    assert (row["state"], row["undone_by"]) == ("undone", "mia")


def test_an_undone_merge_gives_the_former_ids(world):
    before = ids(world.known)
    decision = merge(world.known, "crm:ada", "crm:ben", "eve")
    assert_foretold(world, decision)
    assert_foretold(world, undo(world.known, decision["override_id"][0].as_py(), "mia"))
    assert ids(world.known) == before


def test_an_undone_split_gives_the_former_ids(world):
    before = ids(world.known)
    decision = split(world.known, before["crm:ada"], ["news:ada"], "eve")
    assert_foretold(world, decision)
    assert_foretold(world, undo(world.known, decision["override_id"][0].as_py(), "mia"))
    assert ids(world.known) == before


def test_a_split_tells_each_named_record_from_each_of_the_others(world):
    customer = ids(world.known)["crm:ada"]
    decision = split(world.known, customer, ["news:ada", "shop:ada"], "eve")
    assert {(r["record_l"], r["record_r"]) for r in decision.to_pylist()} == {
        ("crm:ada", "news:ada"), ("crm:ada", "shop:ada"),
    }  # fmt: skip
    assert len(set(decision["override_id"].to_pylist())) == 1
    after = assert_foretold(world, decision)
    # The two stay together, and as the larger part they keep the id.
    assert after["news:ada"] == after["shop:ada"] == customer != after["crm:ada"]


def test_split_parts_stay_apart_when_a_new_record_matches_both(world):
    world.decide(split(world.known, ids(world.known)["crm:ada"], ["news:ada"], "eve"))
    world.refresh(*FIRST, "shop:ada2")
    found = ids(world.known)
    assert found["news:ada"] != found["crm:ada"] == found["shop:ada"]
    world.refresh(*FIRST, "shop:ada2", train=True)
    assert ids(world.known)["news:ada"] != ids(world.known)["crm:ada"]


def test_the_newest_word_on_a_pair_counts(world):
    world.decide(merge(world.known, "crm:ada", "crm:ben", "eve"))
    world.refresh(*FIRST)
    parting = split(world.known, ids(world.known)["crm:ben"], ["crm:ben", "shop:ben"], "mia")
    assert_foretold(world, parting)
    assert people(world.known) == {ADA, BEN, CLEO}
    again = merge(world.known, ids(world.known)["crm:ada"], ids(world.known)["crm:ben"], "zoe")
    assert_foretold(world, again)
    assert people(world.known) == {ADA | BEN, CLEO}
    assert [d["state"] for d in review.decisions(world.known).to_pylist()] == [
        "overruled by a later one", "overruled by a later one", "holds",
    ]  # fmt: skip
    assert_foretold(world, undo(world.known, again["override_id"][0].as_py(), "zoe"))
    assert people(world.known) == {ADA, BEN, CLEO}


def test_a_merge_decides_otherwise_on_all_that_told_the_two_customers_apart(world):
    world.decide(split(world.known, ids(world.known)["crm:ada"], ["news:ada"], "eve"))
    world.refresh(*FIRST)
    assert set(decided(world.known).values()) == {"cannot-link"}
    world.decide(merge(world.known, "news:ada", "crm:ada", "mia"))
    assert decided(world.known) == {
        ("crm:ada", "news:ada"): "must-link", ("news:ada", "shop:ada"): "must-link",
    }  # fmt: skip


def test_a_merge_that_others_forbid_is_said_to_be_in_vain(world):
    """Of a pair that another customer's record bars: only the three together would contradict."""
    world.decide(merge(world.known, "crm:ben", "crm:cleo", "eve"))
    apart = review._decided(world.known, {("crm:ada", "crm:cleo"): "different"}, "eve", "")
    world.decide(apart)
    change = what_would_change(world.known, merge(world.known, "crm:ada", "crm:ben", "mia"))
    assert change.in_vain == 1
    assert len(change.pending) == 2
    assert what_would_change(world.known, undo(world.known, apart["override_id"][0].as_py(), "m"))


def test_a_decision_counts_from_the_next_refresh_on(world):
    decision = merge(world.known, "crm:ada", "crm:ben", "eve")
    world.decide(decision)
    states = [d["state"] for d in review.decisions(world.known).to_pylist()]
    assert states == ["holds from the next refresh on"]
    assert what_would_change(world.known, decision).pending == (decision["override_id"][0].as_py(),)
    world.refresh(*FIRST)
    assert [d["state"] for d in review.decisions(world.known).to_pylist()] == ["holds"]


def test_who_opened_before_another_wrote_takes_nothing_back(world):
    one, other = world.known, world.known
    first, second = (
        merge(one, "crm:ada", "crm:ben", "eve"),
        merge(other, "crm:ben", "crm:cleo", "z"),
    )
    write_decision(one, first)
    write_decision(other, second)
    assert review.all_overrides(one).num_rows == 2


def test_a_retired_customer_is_followed_to_its_survivor(world):
    retired = ids(world.known)["crm:ben"]
    world.decide(merge(world.known, "crm:ada", "crm:ben", "eve"))
    world.refresh(*FIRST)
    found = review.find(world.known, retired)
    assert found.customer_id == ids(world.known)["crm:ada"]
    assert set(found.records) == ADA | BEN


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda k: merge(k, "crm:ada", "crm:nobody", "e"), "source 'crm' has no such record"),
        (lambda k: merge(k, "crm:ada", "cmr:ada", "e"), "no source 'cmr'.*did you mean 'crm'"),
        (lambda k: merge(k, "crm:ada", ids(k)["crm:ben"][:-1] + "x", "e"), "no customer.*you mean"),
        (lambda k: merge(k, "x", "y", "e"), "no customer of this id; name a record as source:"),
        (lambda k: merge(k, ids(k)["crm:ada"], "shop:ada", "e"), "both are customer 'c"),
        (lambda k: merge(k, "shop:ada", "shop:ada", "e"), "both are customer 'c"),
        (lambda k: split(k, ids(k)["crm:ada"], ["crm:ben"], "e"), "not a record of customer"),
        (lambda k: split(k, "crm:cleo", ["crm:cleo"], "e"), "these are all records"),
        (lambda k: undo(k, "o123", "e"), "no decision 'o123'; valid names: none"),
        (lambda k: why(k, "c404"), "no customer"),
        (lambda k: history(k, "shop:nobody"), "source 'shop' has no such record"),
        (lambda k: explain(k, "crm:cleo", "crm:cleo"), "no two records to compare"),
    ],
)
def test_what_is_not_there_is_one_clear_line(world, ask, message):
    with pytest.raises(LinkageError, match=message) as caught:
        ask(world.known)
    assert "\n" not in str(caught.value)
    assert "nobody" not in str(caught.value)


def test_what_was_taken_back_is_not_taken_back_again(world):
    decision = merge(world.known, "crm:ada", "crm:ben", "eve")
    world.decide(decision)
    world.decide(undo(world.known, decision["override_id"][0].as_py(), "eve"))
    with pytest.raises(LinkageError, match="taken back already"):
        undo(world.known, decision["override_id"][0].as_py(), "eve")


# ---- the queue ----------------------------------------------------------------------------------


@pytest.fixture
def doubtful(world):
    """With three doubtful pairs, the last of them a conflict that nothing was weighed of."""
    found = {
        ("crm:ada", "crm:ben"): -1.0,
        ("crm:ben", "crm:cleo"): 1.0,
        ("crm:cleo", "news:ada"): None,
    }
    world.lake.write("reviews", rows("reviews", *(
        {"record_l": one, "record_r": other, "reason": "uncertain", "evidence": "",
         "match_weight": w, "match_probability": w and 1 / (1 + 2**-w), "known_at": utc(2026, 6, 1)}
        for (one, other), w in found.items())))  # fmt: skip
    return world


def asked(known, most=None):
    return [(r["record_l"], r["record_r"]) for r in review.queue(known, most).to_pylist()]


def test_the_queue_is_the_undecided_with_their_customers_the_most_probable_first(doubtful):
    known = doubtful.known
    assert asked(known) == [
        ("crm:ben", "crm:cleo"), ("crm:ada", "crm:ben"), ("crm:cleo", "news:ada"),
    ]  # fmt: skip
    first = review.queue(known, 1).to_pylist()[0]
    assert (first["customer_l"], first["customer_r"]) == (
        ids(known)["crm:ben"],
        ids(known)["crm:cleo"],
    )
    doubtful.decide(merge(known, "crm:ben", "crm:cleo", "eve"))
    assert asked(known, 1) == [("crm:ada", "crm:ben")]


def test_the_queue_goes_to_a_file_and_comes_back_as_decisions(doubtful, tmp_path):
    known, path = doubtful.known, tmp_path / "queue.csv"
    review.write_queue(review.queue(known), path)
    with path.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [r["decision"] for r in table] == ["", "", ""]
    assert review.read_decisions(known, path, "eve").num_rows == 0
    fill(path, "same", " Different ", "")
    made = review.read_decisions(known, path, "eve", "clerk").to_pylist()
    assert {(r["record_l"], r["record_r"]): r["decision"] for r in made} == {
        ("crm:ben", "crm:cleo"): "must-link", ("crm:ada", "crm:ben"): "cannot-link",
    }  # fmt: skip
    assert len({r["override_id"] for r in made}) == 2
    with pytest.raises(ConfigError, match="exists already and may hold decisions"):
        review.write_queue(review.queue(known), path)


def fill(path, *decisions):
    with path.open(newline="") as file:
        table = list(csv.DictReader(file))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerows({**r, "decision": d} for r, d in zip(table, decisions, strict=True))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; 'cdp-ml identity review --out FILE' writes one"),
        ("record_l,record_r,decison\n", "queue.csv:1: column 'decision' is missing; did you mean"),
        ("", "queue.csv:1: column 'record_l' is missing"),
        ("record_l,record_r,decision\ncrm:ada,crm:ben,maybe\n", "queue.csv:2: decision: write"),
        ("record_l,record_r,decision\ncrm:ada,crm:ghost,same\n", "1 of 2 records are not"),
        ("record_l,record_r,decision\ncrm:ada,crm:ben,same\ncrm:ben,crm:ada,different\n",
         "queue.csv:3: a line above decides otherwise"),
    ],
)  # fmt: skip
def test_a_wrong_file_of_decisions_is_one_clear_line(world, tmp_path, content, message):
    path = tmp_path / "queue.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises((ConfigError, LinkageError), match=message) as caught:
        review.read_decisions(world.known, path, "eve")
    assert "ghost" not in str(caught.value)


# ---- why ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def homes(tmp_path_factory):
    """Couples, whose members share everything but given name and birth date."""
    world = World(tmp_path_factory.mktemp("homes"), connect(Engine()))
    world.lake.write("records", households(120)[0])
    world.link(None)
    return world


def test_the_waterfall_adds_up_to_the_weight_of_the_batch(homes):
    known = homes.known
    edges = [e for e in homes.lake.arrow("edges").to_pylist() if e["kind"] == "probabilistic"]
    doubts = homes.lake.arrow("reviews").to_pylist()
    moved = set()
    for row in [*edges[:12], *doubts[:4]]:
        found = explain(known, row["record_r"], row["record_l"])
        assert found["records"] == [row["record_r"], row["record_l"]]
        assert math.isclose(
            sum(s["bits"] for s in found["steps"]), row["match_weight"], abs_tol=1e-6
        )
        assert math.isclose(found["probability"], row["match_probability"], abs_tol=1e-9)
        said = {
            s["name"]: s["level"] for s in found["steps"] if s.get("level", "missing") != "missing"
        }
        assert row["evidence"] == ", ".join(f"{name}: {level}" for name, level in said.items())
        moved |= {s["name"] for s in found["steps"]}
    assert "household" in moved


def test_partners_are_told_apart_by_what_their_household_is_worth(homes):
    found = explain(homes.known, "crm:0", "crm:1")
    steps = {s["name"]: s for s in found["steps"]}
    a, b = (v.to_pylist()[0] for v in (homes.lake.arrow("records").slice(0, 1),
                                       homes.lake.arrow("records").slice(2, 1)))  # fmt: skip
    assert steps["given_name"]["values"] == [a["given_name"], b["given_name"]]
    assert steps["email"]["level"] == "exact"
    assert steps["household"]["bits"] < 0
    assert found["probability"] < SPEC.threshold
    assert len(set(found["customers"])) == 2


def test_another_given_name_and_birth_date_outweigh_all_else(world):
    world.refresh(*FIRST, "crm:zoe")
    found = explain(world.known, "crm:ada", "crm:zoe")
    *_, contradiction = found["steps"]
    assert contradiction["name"] == "contradiction"
    assert contradiction["bits"] < 0
    assert found["weight"] == -12


def test_rarity_is_a_part_of_what_a_field_adds(homes):
    steps = explain(homes.known, "crm:0", "shop:0")["steps"]
    rare = [s for s in steps if s.get("rarity")]
    assert {s["name"] for s in rare} <= {
        "given_name",
        "surname",
        "birth_date",
        "street",
        "locality",
    }
    assert rare


def test_of_two_customers_the_strongest_pair_is_explained(homes):
    known = homes.known
    found = explain(known, ids(known)["crm:0"], ids(known)["crm:1"])
    pairs = [
        explain(known, a, b)["weight"]
        for a in review.find(known, "crm:0").records
        for b in review.find(known, "crm:1").records
    ]
    assert math.isclose(found["weight"], max(pairs))


def test_identifiers_and_people_are_named_beside_the_weight(world):
    shared = {"identifier_type": "shop", "identifier": "7", "event_timestamp": utc(2026, 1, 1),
              "ingested_at": utc(2026, 1, 1)}  # fmt: skip
    bearers = (("crm", "ben"), ("shop", "ada"), ("news", "ada"))
    world.lake.write("identifiers", rows("identifiers", *(
        {**shared, "source": s, "source_record_id": r} for s, r in bearers)))  # fmt: skip
    for one, other in (("shop:ada", "crm:ben"), ("news:ada", "crm:ben"), ("shop:ada", "news:ada")):
        assert explain(world.known, one, other)["identifiers"] == ["shop"]
    assert explain(world.known, "crm:ada", "crm:ben")["identifiers"] == []
    world.decide(review._decided(world.known, {("crm:ben", "shop:ada"): "different"}, "eve", ""))
    assert explain(world.known, "shop:ada", "crm:ben")["decision"]["decision"] == "cannot-link"


def test_the_links_that_a_customer_needs_are_a_tree_the_weakest_first(world, homes):
    world.decide(merge(world.known, "crm:ada", "crm:ben", "eve"))
    world.refresh(*FIRST)
    found = why(world.known, "shop:ben")
    assert set(found["records"]) == ADA | BEN
    assert len(found["needed"]) == 4
    assert [e["kind"] for e in found["needed"]].count("must-link") == 1
    strength = [e["match_probability"] for e in found["needed"]]
    assert strength == sorted(strength)
    confidence = homes.con.to_pyarrow(homes.known.links()).to_pylist()
    for held in confidence[:20]:
        needed = why(homes.known, held["record"])["needed"]
        weakest = needed[0]["match_probability"] if needed else 1.0
        assert math.isclose(weakest, held["confidence"])


# ---- history ------------------------------------------------------------------------------------


def test_history_tells_who_was_whom_as_known_when(world):
    before = ids(world.known)
    survivor, retired = before["crm:ada"], before["crm:ben"]
    world.decide(merge(world.known, "crm:ada", "crm:ben", "eve"))
    world.refresh(*FIRST)
    found = history(world.known, retired)
    periods = [(p["record"], p["customer_id"], p["valid_to"]) for p in found["links"]]
    assert periods == [
        (r, c, end) for r in ("crm:ben", "shop:ben")
        for c, end in ((retired, utc(2026, 6, 2)), (survivor, None))
    ]  # fmt: skip
    assert [(e["event"], e["into_customer_id"]) for e in found["events"]] == [
        ("created", None), ("merged", survivor),
    ]  # fmt: skip
    then = history(world.known, survivor, utc(2026, 6, 2))
    assert {p["record"] for p in then["links"]} == ADA
    assert {e["event"] for e in then["events"]} == {"created"}
    assert {
        p["record"] for p in history(world.known, survivor, utc(2026, 6, 3))["links"]
    } == ADA | BEN
    (held,) = history(world.known, "shop:ben", utc(2026, 6, 1))["links"]
    assert held["customer_id"] == retired
    assert history(world.known, survivor, utc(2020, 1, 1))["links"] == []


# ---- pictures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["chart.png", "chart.html"])
def test_charts_are_files_that_need_nothing_else(world, tmp_path, name):
    explained, found = explain(world.known, "crm:ada", "shop:ada"), why(world.known, "crm:ada")
    for chart in ((pictures.draw_waterfall, explained), (pictures.draw_customer, found)):
        pictures.drawing(tmp_path / name, chart[0])(chart[1])
        content = (tmp_path / name).read_bytes()
        if name.endswith(".png"):
            assert content.startswith(b"\x89PNG")
        else:
            assert b"<svg" in content
            assert not re.search(rb"""(?:src|href|url)\s*[=(]\s*["']?https?:""", content)


def test_values_that_look_like_formulas_or_markup_are_drawn_as_they_are(tmp_path):
    steps = [{"name": "surname", "values": ["$x^2", "<b>$"], "level": "exact", "bits": 1.0}]
    odd = {"records": ["a:$1$", "b:<i>"], "steps": steps, "weight": 1.0, "probability": 0.67}
    pictures.draw_waterfall(odd, tmp_path / "odd.html")
    assert "<i>" not in (tmp_path / "odd.html").read_text()
    edge = {"record_l": "a:$1$", "record_r": "b:<i>", "kind": "must-link", "match_weight": None,
            "match_probability": 1.0}  # fmt: skip
    found = {"customer_id": "c1", "records": odd["records"], "edges": [edge], "needed": [edge]}
    pictures.draw_customer(found, tmp_path / "odd.png")


def test_a_chart_of_another_format_is_refused_before_any_work(tmp_path):
    with pytest.raises(ConfigError, match=r"no format '\.pgn'; did you mean '\.png'"):
        pictures.drawing(tmp_path / "chart.pgn", pictures.draw_waterfall)
    with pytest.raises(ConfigError, match="there is no folder"):
        pictures.drawing(tmp_path / "none" / "chart.png", pictures.draw_waterfall)
