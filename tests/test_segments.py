import ibis
import pyarrow as pa
import pytest
from conftest import rows, spark_sql, utc

from cdp_ml.config import Cut, ModelSpec, Segment
from cdp_ml.errors import ConfigError
from cdp_ml.segments import predicted_members, rule_members, update_membership

JAN, FEB = utc(2026, 1, 1), utc(2026, 2, 1)


def inside(*pairs):
    return ibis.memtable(
        pa.table({"segment": [s for s, _ in pairs], "customer_id": [c for _, c in pairs]})
        if pairs
        else pa.schema([("segment", pa.string()), ("customer_id", pa.string())]).empty_table()
    )


def stays(con, table):
    listed = con.to_pyarrow(table).to_pylist()
    return {(r["segment"], r["customer_id"], r["entered_at"], r["exited_at"]) for r in listed}


def membership(*given):
    names = ("segment", "customer_id", "entered_at", "exited_at")
    return ibis.memtable(
        rows("segment_membership", *(dict(zip(names, g, strict=True)) for g in given))
    )


def test_who_is_new_enters_who_is_gone_exits_and_who_stays_keeps_the_entry(con):
    before = membership(("vip", "stays", JAN, None), ("vip", "leaves", JAN, None))
    after = update_membership(before, inside(("vip", "stays"), ("vip", "comes")), FEB)
    assert stays(con, after) == {
        ("vip", "stays", JAN, None),
        ("vip", "leaves", JAN, FEB),
        ("vip", "comes", FEB, None),
    }


def test_a_return_is_a_new_stay_beside_the_old_one(con):
    before = membership(("vip", "a", JAN, utc(2026, 1, 10)))
    after = update_membership(before, inside(("vip", "a")), FEB)
    assert stays(con, after) == {
        ("vip", "a", JAN, utc(2026, 1, 10)),
        ("vip", "a", FEB, None),
    }


def test_computing_the_same_instant_again_changes_nothing(con):
    before = membership(("vip", "a", JAN, FEB), ("vip", "b", FEB, None))
    assert stays(con, update_membership(before, inside(("vip", "b")), FEB)) == stays(con, before)


def test_a_stay_that_ends_where_it_began_is_no_stay(con):
    assert (
        stays(con, update_membership(membership(("vip", "a", FEB, None)), inside(), FEB)) == set()
    )


def test_rules_are_conditions_on_traits(con):
    people = con.create_table("people", pa.table({"customer_id": ["a", "b"], "spend_365d": [9, 1]}))
    (members,) = rule_members(con, people, {"vip": Segment(where="spend_365d > 5")})
    assert con.to_pyarrow(members).to_pylist() == [{"segment": "vip", "customer_id": "a"}]


def test_a_rule_on_an_unknown_trait_names_the_nearest(con):
    people = con.create_table("people", pa.table({"customer_id": ["a"], "spend_365d": [9]}))
    with pytest.raises(
        ConfigError, match=r"segments.vip.where: no column 'spend_36d'; .*spend_365d"
    ):
        rule_members(con, people, {"vip": Segment(where="spend_36d > 5")})


def test_cuts_of_scores_and_clusters_become_segments(con):
    scores = rows(
        "scores",
        *(
            {"model": "buy", "customer_id": c, "score": s, "percentile": p}
            for c, s, p in (("a", 0.9, 1.0), ("b", 0.5, 0.5), ("c", 0.1, 0.0))
        ),
        {"model": "clusters", "customer_id": "a", "cluster": "frequent"},
    )
    cuts = {"top": Cut(top=0.4), "likely": Cut(above=0.3)}
    spec = ModelSpec(name="buy", task="propensity", description="", features="f", segments=cuts)
    tables = predicted_members(ibis.memtable(scores), {"buy": spec})
    found = {
        (r["segment"], r["customer_id"]) for t in tables for r in con.to_pyarrow(t).to_pylist()
    }
    assert found == {("top", "a"), ("likely", "a"), ("likely", "b"), ("clusters: frequent", "a")}


@pytest.mark.parametrize(("top", "size"), [(0.2, 2), (0.5, 5), (0.7, 7), (0.95, 10)])
def test_a_top_share_has_its_size_also_where_scores_are_equal(con, top, size):
    """A rule gives but two scores: of the better half those come first whose ids do."""
    customers = "abcdefghij"
    scores = rows(
        "scores",
        *({"model": "m", "customer_id": c, "score": float(c < "f")} for c in reversed(customers)),
    )
    cuts = {"top": Cut(top=top)}
    spec = ModelSpec(name="m", task="propensity", description="", features="f", segments=cuts)
    (members, _) = predicted_members(ibis.memtable(scores), {"m": spec})
    found = sorted(r["customer_id"] for r in con.to_pyarrow(members).to_pylist())
    assert found == list(customers[:size])


def test_membership_compiles_for_spark():
    before = ibis.table(rows("segment_membership").schema, name="before")
    now = ibis.table({"segment": "string", "customer_id": "string"}, name="now")
    assert "ANTI JOIN" in spark_sql(update_membership(before, now, FEB))
