from collections import Counter

import pyarrow as pa
import pytest
from conftest import rows, utc
from hypothesis import given, settings
from hypothesis import strategies as st

from cdp_ml.config import Engine
from cdp_ml.engine import connect
from cdp_ml.identity.crosswalk import assign_customer_ids

MONDAY, TUESDAY, WEDNESDAY = utc(2026, 6, 1), utc(2026, 6, 2), utc(2026, 6, 3)
EMPTY = rows("crosswalk")


def assign(con, clusters: dict[str, int], previous: pa.Table = EMPTY, known_at=MONDAY):
    """Clusters by record letter; a record's letter also says on which day of May it came.

    Returns the whole crosswalk after the run, and the rows of the log.
    """
    given = pa.table(
        {
            "source": ["crm"] * len(clusters),
            "source_record_id": pa.array(clusters, pa.string()),
            "ingested_at": pa.array([came(c) for c in clusters], pa.timestamp("us", "UTC")),
            "cluster": pa.array(clusters.values(), pa.int64()),
            "confidence": [1.0] * len(clusters),
        }
    )
    found = assign_customer_ids(given, previous, known_at, con)
    key = ["source", "source_record_id", "valid_from"]
    former = found.former.cast(EMPTY.select(key).schema)
    kept = previous.join(former, key, join_type="left anti").select(EMPTY.column_names)
    whole = pa.concat_tables([kept, found.links]).sort_by([(k, "ascending") for k in key])
    return whole.combine_chunks(), found.log


def came(letter: str):
    return utc(2026, 5, ord(letter) - ord("a") + 1)


def current(crosswalk: pa.Table) -> dict[str, str]:
    links = [r for r in crosswalk.to_pylist() if r["valid_to"] is None]
    assert len(links) == len({r["source_record_id"] for r in links})
    return {r["source_record_id"]: r["customer_id"] for r in links}


def events(log: pa.Table) -> list[tuple]:
    return sorted((r["event"], r["customer_id"], r["into_customer_id"]) for r in log.to_pylist())


def test_new_records_are_linked_since_they_were_ingested(con):
    crosswalk, log = assign(con, {"a": 0, "b": 0, "c": 1})
    ids = current(crosswalk)
    assert ids["a"] == ids["b"] != ids["c"]
    assert [r["valid_from"] for r in crosswalk.to_pylist()] == [came("a"), came("b"), came("c")]
    assert events(log) == sorted([("created", ids["a"], None), ("created", ids["c"], None)])


def test_the_id_does_not_depend_on_the_number_of_the_cluster_nor_on_later_records(con):
    one, _ = assign(con, {"a": 0, "b": 0})
    other, _ = assign(con, {"b": 7, "a": 7, "z": 7})
    assert current(one)["a"] == current(other)["a"]


def test_a_rerun_on_the_same_data_changes_nothing(con):
    crosswalk, _ = assign(con, {"a": 0, "b": 0, "c": 1})
    again, log = assign(con, {"c": 5, "b": 4, "a": 4}, crosswalk, TUESDAY)
    assert again.equals(crosswalk)
    assert log.num_rows == 0


def test_a_merge_retires_the_smaller_customer_into_the_larger(con):
    before, _ = assign(con, {"a": 0, "b": 1, "c": 1})
    after, log = assign(con, {"a": 0, "b": 0, "c": 0}, before, TUESDAY)
    small, large = current(before)["a"], current(before)["b"]
    assert set(current(after).values()) == {large}
    assert events(log) == [("merged", small, large)]
    history = [
        (r["customer_id"], r["valid_from"], r["valid_to"])
        for r in after.to_pylist()
        if r["source_record_id"] == "a"
    ]
    assert history == [(small, came("a"), TUESDAY), (large, TUESDAY, None)]


def test_of_equal_parts_the_longer_known_one_survives(con):
    before, _ = assign(con, {"a": 0, "b": 1})
    after, _ = assign(con, {"a": 0, "b": 0}, before, TUESDAY)
    assert set(current(after).values()) == {current(before)["a"]}


def test_a_split_gives_the_smaller_part_a_new_id(con):
    before, _ = assign(con, {"a": 0, "b": 0, "c": 0})
    after, log = assign(con, {"a": 0, "b": 1, "c": 1}, before, TUESDAY)
    ids, old = current(after), current(before)["a"]
    assert ids["b"] == ids["c"] == old
    # The hash of a's key is taken by the larger part, so a's new id is salted.
    assert ids["a"] != old
    assert events(log) == [("split", old, ids["a"])]


def test_an_undone_merge_gives_the_former_ids_back(con):
    apart = {"a": 0, "b": 1, "c": 1}
    first, _ = assign(con, apart)
    merged, _ = assign(con, dict.fromkeys("abc", 0), first, TUESDAY)
    again, log = assign(con, apart, merged, WEDNESDAY)
    assert current(again) == current(first)
    assert events(log) == [("split", current(first)["b"], current(first)["a"])]


def test_a_retired_id_is_never_used_for_other_records(con):
    first, _ = assign(con, {"a": 0, "b": 1, "c": 1, "d": 1})
    merged, _ = assign(con, dict.fromkeys("abcd", 0), first, TUESDAY)
    again, _ = assign(con, {"a": 1, "b": 1, "c": 1, "d": 0}, merged, WEDNESDAY)
    assert current(again)["d"] not in {current(first)["a"], current(merged)["d"]}


def test_a_record_that_moves_to_another_customer_is_a_split_of_its_former_one(con):
    before, _ = assign(con, {"a": 0, "b": 0, "c": 0, "d": 1})
    after, log = assign(con, {"a": 0, "b": 0, "c": 1, "d": 1}, before, TUESDAY)
    assert current(after)["c"] == current(before)["d"]
    assert events(log) == [("split", current(before)["a"], current(before)["d"])]


def test_links_of_records_that_are_no_longer_delivered_stay(con):
    before, _ = assign(con, {"a": 0, "b": 0, "c": 1})
    after, log = assign(con, {"b": 0, "c": 0}, before, TUESDAY)
    assert current(after)["a"] == current(before)["a"]
    assert all(event != "retired" for event, _, _ in events(log))


def test_after_a_crash_the_same_instant_gives_the_same_state(con):
    first, _ = assign(con, {"a": 0, "b": 1, "c": 1})
    merged = {"a": 0, "b": 0, "c": 0}
    once = assign(con, merged, first, TUESDAY)
    twice = assign(con, merged, first, TUESDAY)
    assert once[0].equals(twice[0])
    assert once[1].equals(twice[1])


@pytest.fixture(scope="module")
def shared_con():
    return connect(Engine())


PARTITION = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 3), min_size=1)


@settings(max_examples=25, deadline=None)
@given(runs=st.lists(PARTITION, min_size=1, max_size=4))
def test_whatever_happens_history_is_whole_and_customers_are_the_clusters(shared_con, runs):
    crosswalk = EMPTY
    for day, clusters in enumerate(runs):
        before = crosswalk
        crosswalk, log = assign(shared_con, clusters, before, utc(2026, 6, day + 1))
        links = current(crosswalk)
        seen = {letter: links[letter] for letter in clusters}
        pairs = {(clusters[x], seen[x]) for x in clusters}
        assert len(pairs) == len(set(clusters.values())) == len(set(seen.values()))
        assert set(links) == set(current(before)) | set(clusters)
        keys = [(r["source_record_id"], r["valid_from"]) for r in crosswalk.to_pylist()]
        assert max(Counter(keys).values()) == 1
        gone = set(current(before).values()) - set(links.values())
        assert {c for event, c, _ in events(log) if event == "merged"} == gone
        for letter in links:
            spans = [r for r in crosswalk.to_pylist() if r["source_record_id"] == letter]
            ends = [r["valid_to"] for r in spans]
            assert ends == [*(r["valid_from"] for r in spans[1:]), None]
