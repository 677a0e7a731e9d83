import datetime as dt

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from conftest import rows, utc
from learn_cases import AS_OF, windows_of

from cdp_ml.config import ModelSpec
from cdp_ml.errors import ConfigError, NotPromotedError
from cdp_ml.lake import Lake
from cdp_ml.learn import next_category
from cdp_ml.learn.datasets import TimeSplit, time_split
from cdp_ml.learn.estimators import with_defaults
from cdp_ml.learn.evaluate import Estimate
from cdp_ml.learn.next_category import DEFAULTS, recommend
from cdp_ml.learn.next_category_candidates import Ranked, rank_popular, rank_tifu, tifu_vectors
from cdp_ml.learn.next_category_features import SHRINK, transitions
from cdp_ml.learn.next_category_purchases import (
    Purchases,
    bought_between,
    item_names,
    order_lines,
    purchases_before,
)
from cdp_ml.learn.next_category_training import (
    fit_ranker,
    hits,
    judge_next,
    realized_recall,
    train_next,
)
from cdp_ml.workspace import purchase_windows, purchases_from

QUICK = {"n_estimators": 40, "neighbors": 20, "min_child_samples": 20}


def bought(*rows) -> pa.Table:
    """Lines from (customer, days before AS_OF, item); those of a customer and day are one order."""
    customer, days, item = zip(*rows, strict=True)
    return pa.table(
        {
            "customer_id": customer,
            "order_id": [f"{c}/{d}" for c, d in zip(customer, days, strict=True)],
            "event_timestamp": pa.array(
                [AS_OF - dt.timedelta(days=d) for d in days], pa.timestamp("us", "UTC")
            ),
            "item": pa.array(item, pa.string()),
        }
    )


def shop(customers=500, seed=0) -> pa.Table:
    """Cushions and lamps are bought once, and soon after their covers and bulbs; coffee always."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(customers):
        first = int(random.integers(10, 110))
        main, companion = (("cushions", "covers"), ("lamps", "bulbs"))[number % 2]
        name = f"c{number:04}"
        rows += [
            (name, first, main),
            (name, max(1, first - int(random.integers(5, 20))), companion),
        ]
        if number % 3 == 0:
            rows += [(name, day, "coffee") for day in range(1 + number % 14, 120, 14)]
        rows.append((name, 130, str(random.choice(["towels", "vases"]))))
    return bought(*rows)


def purchases(*rows, items=4) -> Purchases:
    """Purchases from (customer, order, item), orders ten days apart."""
    customer, order, item = np.array(rows).T
    return Purchases(customer, order, item, 10.0 * (order + 1), int(customer.max()) + 1, items)


def trained(lines, given=None, champion=None):
    split = split_of(given := {**QUICK, **(given or {})})
    return train_next(windows_of(lines, split), split, given, "next_category", 2, champion)


def split_of(given):
    spec = ModelSpec(name="next_category", task="next_category", description="", estimator=given)
    return time_split(spec, AS_OF, AS_OF - dt.timedelta(days=365))


@pytest.fixture(scope="module")
def trial():
    return trained(shop())


def test_later_orders_count_more_by_hand():
    # Three orders in groups of two from the back: {latest, one before} and {the first}. Each group
    # is a mean, and so are the two groups.
    p = purchases((0, 0, 0), (0, 1, 1), (0, 2, 2))
    params = with_defaults({"group": 2, "decay_within": 0.5, "decay_between": 0.4}, DEFAULTS, "n")
    assert tifu_vectors(p, params).toarray()[0] == pytest.approx([1 / 4, 0.5 / 4, 0.4 / 2, 0])


def test_neighbors_bring_what_the_customer_never_bought():
    p = purchases((0, 0, 0), (1, 0, 0), (1, 1, 1), (2, 0, 2))
    found = rank_tifu(p, with_defaults({"neighbors": 1}, DEFAULTS, "n"), 3)
    assert found.item[found.customer == 0].tolist() == [0, 1]
    assert found.rank[found.customer == 0].tolist() == [1, 2]


def test_popular_items_fill_up_behind_the_customers_own():
    p = purchases((0, 0, 3), (1, 0, 1), (2, 0, 1), (2, 0, 2))
    assert rank_popular(p, 2).item[:2].tolist() == [3, 1]
    assert rank_popular(p, 2, own=0.0).item[:1].tolist() == [1]
    assert rank_popular(p, 2, all_=0.0).customer.tolist() == [0, 1, 2, 2]


def test_recall_and_ndcg_by_hand():
    p = purchases((0, 0, 0), (1, 0, 1))
    ranked = Ranked(*(np.array(a) for a in ([0, 0], [2, 3], [0.9, 0.1], [1, 2])))
    future = np.array([[0, 3], [0, 1], [1, 1]])
    ideal = 1 + 1 / np.log2(3)
    expected = [[1 / 2, (1 / np.log2(3)) / ideal], [0, 0]]
    assert hits(p, ranked, future, 2) == pytest.approx(np.array(expected))


def test_what_follows_within_the_days_is_counted_and_nothing_later():
    p = purchases((0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 2))
    after, beside = transitions(p, 10)
    share = 1 / (2 + SHRINK)
    assert after.toarray()[0] == pytest.approx([0, share, share, 0])
    assert after.toarray()[1:].sum() == beside.toarray().sum() == 0
    assert transitions(p, 9)[0].nnz == 0


def test_who_bought_cushions_is_offered_covers_and_not_cushions_again(trial):
    new = bought(("new", 5, "cushions"), ("other", 5, "lamps"))
    found = recommend(pa.concat_tables([shop(), new]), trial.ranker, AS_OF, 8).to_pylist()
    rank = {r["item"]: r["rank"] for r in found if r["customer_id"] == "new"}
    assert rank["covers"] < min(rank["cushions"], rank["lamps"], rank["bulbs"])
    rank = {r["item"]: r["rank"] for r in found if r["customer_id"] == "other"}
    assert rank["bulbs"] < min(rank["cushions"], rank["lamps"], rank["covers"])


def test_customers_ranked_some_after_the_others_get_the_same(trial, monkeypatch):
    together = recommend(shop(), trial.ranker, AS_OF, 3)
    monkeypatch.setattr(next_category, "AT_ONCE", 70)
    assert recommend(shop(), trial.ranker, AS_OF, 3).equals(together)


def test_what_is_bought_again_and_again_is_offered_again(trial):
    found = recommend(shop(), trial.ranker, AS_OF, 1).to_pylist()
    best = {r["customer_id"]: r for r in found}
    drinkers = [best[f"c{n:04}"] for n in range(0, 300, 3)]
    assert np.mean([r["item"] == "coffee" and r["bought_before"] for r in drinkers]) > 0.9


def test_it_is_judged_on_a_later_window_and_beats_what_is_bought_most(trial):
    metrics = trial.evaluation.metrics
    ours, top = (metrics[f"{p}recall_at_2"] for p in ("", "baseline_global_top/"))
    assert ours.low > top.high
    assert trial.evaluation.promoted
    assert "lead" in trial.evaluation.verdict
    assert trial.rows["items"] == 7


def test_the_champion_is_compared_on_the_same_window(trial):
    again = trained(shop(), champion=trial.ranker).evaluation
    assert again.metrics["champion/recall_at_2"] == trial.evaluation.metrics["recall_at_2"]
    assert again.metrics["champion/recall_at_2_gain"] == Estimate(0, 0, 0)
    assert again.promoted
    weaker = trained(shop(), {"n_estimators": 3, "num_leaves": 2}, trial.ranker).evaluation
    assert weaker.metrics["recall_at_2_gain"].low > 0, "of the baselines it beats the best"
    assert not weaker.promoted
    assert "its interval must not reach below 0" in weaker.verdict


def test_what_recommendations_turned_out_to_be_worth_by_hand():
    """Of two items that each bought one had been offered; of who was offered nothing, nothing."""
    ids = [f"c{n}" for n in range(50)]
    items, rank = ["x"] * 50 + ["y"] * 50, [1] * 50 + [2] * 50
    offered = pa.table({"customer_id": ids * 2, "item": items, "rank": rank})
    bought_ = {"customer_id": [*ids, *ids, *ids[:25], "other"]}
    bought_["item"] = ["x"] * 50 + ["z"] * 50 + ["y"] * 25 + ["x"]
    lines = pa.table(bought_)
    expected = (25 * 2 / 3 + 25 / 2) / 50
    assert realized_recall(offered, lines) == {"realized_recall_at_2": pytest.approx(expected)}
    doubled = pa.concat_tables([lines, lines])
    assert realized_recall(offered, doubled) == realized_recall(offered, lines)
    assert realized_recall(offered, lines.slice(1, 48)) == {}


def test_each_window_is_learned_from_as_it_was_seen_then():
    """What an instant's rows do not hold, others' rows do not tell of."""
    split = split_of(QUICK)
    lines = windows_of(shop(), split)
    at_test = pc.equal(lines["as_of"], pa.scalar(split.test))
    nothing = pa.concat_tables(
        [lines.filter(pc.invert(at_test)), lines.filter(at_test).slice(0, 9)]
    )
    with pytest.raises(NotPromotedError, match="test has 1 customers"):
        train_next(nothing, split, QUICK, "next_category")


def test_history_is_what_was_known_and_outcomes_are_what_is_known(con, tmp_path):
    """A and B are one since June: in May only A's order was hers; one came late to the till."""
    before, may, june = utc(2026, 1, 1), utc(2026, 5, 1), utc(2026, 6, 1)
    lake = Lake(tmp_path)
    links = [("web", "w", "A", before, None), ("pos", "p", "B", before, june),
             ("pos", "p", "A", june, None)]  # fmt: skip
    names = ("source", "source_record_id", "customer_id", "valid_from", "valid_to")
    crosswalk = [dict(zip(names, link, strict=True), confidence=1.0) for link in links]
    lake.write("crosswalk", rows("crosswalk", *crosswalk))
    times = {"event_timestamp": before, "ingested_at": before}
    known = [{"identifier_type": s, "identifier": r, "source": s, "source_record_id": r, **times}
             for s, r in (("web", "w"), ("pos", "p"))]  # fmt: skip
    lake.write("identifiers", rows("identifiers", *known))
    orders = [
        ("1", "web", "w", utc(2026, 4, 1), utc(2026, 4, 1)),
        ("2", "pos", "p", utc(2026, 4, 2), utc(2026, 4, 2)),
        ("late", "web", "w", utc(2026, 4, 3), utc(2026, 5, 9)),
        ("next", "pos", "p", utc(2026, 5, 20), utc(2026, 5, 20)),
        ("beyond", "web", "w", utc(2026, 6, 20), utc(2026, 6, 20)),
    ]
    names = ("order_id", "identifier_type", "identifier", "event_timestamp", "ingested_at")
    more = {"product_id": "x", "quantity": 1.0, "source": "shop", "line_no": 1}
    lines = [{**dict(zip(names, order, strict=True)), **more} for order in orders]
    lake.write("transactions", rows("transactions", *lines))
    lake.write("products", rows("products"))
    spec = ModelSpec(name="n", task="next_category", description="", item="product")
    split = TimeSplit((may,), june, utc(2026, 7, 1), dt.timedelta(days=31))
    found = purchase_windows(lake, con, spec, split)
    seen = {
        at: sorted((r["customer_id"], r["order_id"]) for r in found.to_pylist() if r["as_of"] == at)
        for at in split.instants
    }
    assert seen[may] == [("A", "1"), ("A", "next"), ("B", "2"), ("B", "next")]
    assert seen[june] == [
        *(("A", "1"), ("A", "beyond"), ("A", "late")),
        *(("B", "2"), ("B", "beyond"), ("B", "next")),
    ], "known from June on means not known before"
    ahead = purchases_from(lake, con, spec, may, 31, utc(2026, 7, 1)).to_pylist()
    assert [(r["customer_id"], r["order_id"]) for r in ahead] == [("A", "next"), ("B", "next")]


def test_the_future_changes_no_recommendation(trial):
    later = bought(("c0001", -1, "vases"), ("c0002", -3, "sofas"))
    both = pa.concat_tables([later, shop()])
    assert recommend(both, trial.ranker, AS_OF).equals(recommend(shop(), trial.ranker, AS_OF))


def test_neither_the_order_of_lines_nor_doubles_count():
    lines = shop(60)
    shuffled = lines.take(np.random.default_rng(0).permutation(lines.num_rows))
    names = item_names(lines, AS_OF)
    one, customers = purchases_before(lines, AS_OF, names)
    two, again = purchases_before(pa.concat_tables([shuffled, lines]), AS_OF, names)
    assert customers.equals(again)
    for column in ("customer", "order", "item", "days"):
        assert (getattr(one, column) == getattr(two, column)).all()


def test_orders_are_counted_from_the_latest_and_lines_without_item_left_out():
    lines = bought(("a", 9, "x"), ("a", 2, "y"), ("a", 2, None), ("b", 40, "x"))
    names = item_names(lines, AS_OF)
    p, customers = purchases_before(lines, AS_OF, names)
    assert (customers.to_pylist(), names.to_pylist()) == (["a", "b"], ["x", "y"])
    assert p.order.tolist() == [0, 1, 0]
    assert p.item.tolist() == [1, 0, 0]
    assert p.days.tolist() == [2, 9, 40]
    start = AS_OF - dt.timedelta(days=9)
    assert bought_between(lines, start, AS_OF, customers, names).tolist() == [[0, 0], [0, 1]]


def test_lines_are_what_was_bought_by_category_or_product(con):
    transactions = pa.table(
        {
            "customer_id": ["a", "a", "b"],
            "order_id": ["1", "2", "3"],
            "event_timestamp": pa.array([AS_OF] * 3),
            "product_id": ["p", "p", "unlisted"],
            "quantity": [2.0, -1.0, 1.0],
        }
    )
    products = pa.table({"product_id": ["p"], "category": ["cushions"]})
    tables = [ibis.memtable(t) for t in (transactions, products)]
    lines = con.to_pyarrow(order_lines(*tables, "category")).to_pylist()
    assert [(r["customer_id"], r["order_id"], r["item"]) for r in lines] == [("a", "1", "cushions")]
    lines = con.to_pyarrow(order_lines(*tables, "product"))
    assert sorted(lines["item"].to_pylist()) == ["p", "unlisted"]


@pytest.mark.parametrize(
    "lines",
    [
        shop(20),  # too few customers
        shop().slice(0, 0),  # none
        shop().set_column(3, "item", pa.nulls(shop().num_rows, pa.string())),  # nothing has a name
        bought(*((f"c{i}", d, "all") for i in range(99) for d in (5, 35, 65))),  # one item
        bought(*((f"c{i}", i % 30, "xy"[i % 2]) for i in range(99))),  # nobody bought before
    ],
)
def test_too_little_to_learn_from_is_refused(lines):
    with pytest.raises(NotPromotedError, match="no model this time"):
        trained(lines)


def test_customers_who_are_all_the_same_promote_nothing():
    lines = bought(*((f"c{i}", d, "xy"[d % 2]) for i in range(99) for d in (5, 36, 66, 95)))
    assert not trained(lines).evaluation.promoted


def test_an_unknown_parameter_names_the_one_meant():
    with pytest.raises(ConfigError, match="'neighbors'"):
        trained(shop(60), {"neighbor": 3})


@pytest.mark.parametrize("given", [{"windows": 0}, {"within_days": 0}, {"neighbors": 0}])
def test_parameters_that_make_no_sense_are_refused(given):
    with pytest.raises(ConfigError, match="must be at least 1, not 0"):
        trained(shop(60), given)


def test_groceries_half_as_many_again_as_bought_most(shared_data, monkeypatch):
    from conftest import ROOT

    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from next_basket import tafeng

    (before, last), (history, future) = ((_some(p), f[f[:, 0] < 800]) for p, f in tafeng())
    ranker = fit_ranker([(before, last)], {"n_estimators": 100}, "basket")
    found = judge_next(history, future, ranker, "basket")
    assert found.promoted
    assert found.metrics["recall_at_10"].value > 0.13


def _some(p: Purchases) -> Purchases:
    kept = p.customer < 800
    arrays = (getattr(p, n)[kept] for n in ("customer", "order", "item", "days"))
    return Purchases(*arrays, 800, p.items)
