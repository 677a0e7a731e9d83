import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import check_grad
from scipy.special import gammaln

from cdp_ml.errors import NotPromotedError
from cdp_ml.learn import bgnbd
from cdp_ml.learn.bgnbd import BgNbd, GammaGamma, _grown, fit_bgnbd, fit_gamma_gamma


@pytest.fixture(scope="module")
def cdnow(shared_data):
    """Repeat purchases, their last, the age, and the mean value of repeats, in weeks and dollars.

    As in the paper: calibration ends after 39 weeks, purchases of one day are one.
    """
    file = shared_data / "cdnow_sample.txt"
    if not file.is_file():
        pytest.skip(f"no {file.name} in {shared_data}")
    import pandas as pd

    rows = pd.read_csv(file, sep=r"\s+", header=None, names=["m", "id", "date", "cds", "dollars"])
    rows["day"] = pd.to_datetime(rows["date"].astype(str))
    days = rows.groupby(["id", "day"], as_index=False)["dollars"].sum()
    end = pd.Timestamp("1997-09-30")
    days = days[days["day"] <= end]
    first = days.groupby("id")["day"].transform("min")
    repeats = days[days["day"] > first].groupby("id")["dollars"]
    by = days.groupby("id")["day"].agg(["min", "max", "count"])
    week = pd.Timedelta(weeks=1)
    return pd.DataFrame(
        {
            "x": by["count"] - 1.0,
            "t_x": (by["max"] - by["min"]) / week,
            "age": (end - by["min"]) / week,
            "value": repeats.mean().reindex(by.index).fillna(0.0),
        }
    )


def test_the_published_parameters_are_found(cdnow):
    found = fit_bgnbd(*(cdnow[c].to_numpy() for c in ("x", "t_x", "age")))
    assert len(cdnow) == 2357
    published = {"r": 0.243, "alpha": 4.414, "a": 0.793, "b": 2.426}
    for name, value in published.items():
        assert round(getattr(found, name), 3) == value, name
    assert round(found.log_likelihood, 1) == -9582.4


def test_the_published_values_of_purchases_are_found(cdnow):
    bought = cdnow[cdnow["x"] > 0]
    found = fit_gamma_gamma(bought["x"].to_numpy(), bought["value"].to_numpy())
    assert len(bought) == 946
    assert (round(found.p, 2), round(found.q, 2), round(found.v, 2)) == (6.25, 3.74, 15.44)


def test_the_published_example_of_a_customer():
    """The worked example of Fader, Hardie and Lee: x = 2, t_x = 30.43, T = 38.86, t = 39."""
    model = BgNbd(0.243, 4.414, 0.793, 2.426)
    customer = [np.array([v]) for v in (2.0, 30.43, 38.86)]
    assert model.purchases(*customer, 39)[0] == pytest.approx(1.226, abs=5e-4)


def test_a_hand_computed_case():
    """With r = alpha = a = b = 1, x = 1, t_x = 1, T = 3: the odds of having left are (4/2)^2."""
    model = BgNbd(1, 1, 1, 1)
    customer = [np.array([v]) for v in (1.0, 1.0, 3.0)]
    assert model.alive(*customer)[0] == pytest.approx(1 / 5)
    assert model.buys(*customer, 4)[0] == pytest.approx((1 - (4 / 8) ** 2) / 5)
    assert model.alive(*(np.array([v]) for v in (0.0, 0.0, 3.0)))[0] == 1.0


def test_the_value_of_a_newcomer_is_that_of_all_and_of_an_old_customer_nearly_their_own():
    model = GammaGamma(2, 3, 10)
    own = model.mean_value(np.array([0, 1, 10_000]), np.array([0.0, 40, 40]))
    assert own[0] == pytest.approx(2 * 10 / (3 - 1))
    assert own[1] == pytest.approx(2 * (10 + 40) / (2 + 3 - 1))
    assert own[2] == pytest.approx(40, abs=0.02)


@given(st.floats(0.1, 3), st.floats(1, 50), st.floats(0.2, 3), st.floats(0.2, 5))
@settings(max_examples=20, deadline=None)
def test_expectations_are_consistent(r, alpha, a, b):
    model = BgNbd(r, alpha, a, b)
    x, t_x, age = np.array([0.0, 1, 5]), np.array([0.0, 10, 25]), np.array([30.0, 30, 30])
    for ahead in (0.0, 5.0, 50.0):
        chance, number = (f(x, t_x, age, ahead) for f in (model.buys, model.purchases))
        assert np.all((chance >= 0) & (chance <= 1))
        assert np.all(number >= chance - 1e-6)  # at least one is expected where one is certain


def test_who_bought_hundreds_of_times_within_weeks_is_expected_to_buy_a_finite_number():
    """The paper's equation overflows here; both ways agree where it does not."""
    model = BgNbd(0.5, 15, 0.6, 2.5)
    x, ahead = np.array([3.0, 200, 400, 5_000]), 20
    found = model.purchases(x, np.full(4, 20.0), np.full(4, 20.0), ahead)
    assert np.all(np.isfinite(found))
    assert np.all(np.diff(found) > 0)
    assert np.all(found < 2 * x * ahead / 20)
    by_equation = model.purchases(x[:2], np.full(2, 20.0), np.full(2, 20.0), ahead)
    r, b, ratio = model.r + x[:2], model.b + x[:2], np.full(2, ahead / 35)
    by_quadrature = _grown(model.a, b, r, ratio) * model.alive(x[:2], 20.0, np.full(2, 20.0))
    np.testing.assert_allclose(by_quadrature, by_equation, rtol=1e-3)


def test_the_gradients_are_those_of_the_losses():
    random = np.random.default_rng(0)
    x = random.poisson(2, 40).astype(float)
    rows = np.array([x, x * 3.0, x * 3 + 5.0])
    times, logs = np.ones(40), np.log([0.4, 6.0, 0.9, 2.0])
    gap = check_grad(
        lambda p: bgnbd._bgnbd_loss(p, rows, times)[0],
        lambda p: bgnbd._bgnbd_loss(p, rows, times)[1],
        logs,
    )
    assert gap < 1e-3
    n, mean = x + 1, random.gamma(3, 10, 40)
    gap = check_grad(
        lambda p: bgnbd._gamma_gamma_loss(p, n, mean)[0],
        lambda p: bgnbd._gamma_gamma_loss(p, n, mean)[1],
        np.log([2.0, 3.0, 15.0]),
    )
    assert gap < 1e-3


def test_the_likelihood_of_one_who_never_came_back_is_that_of_silence():
    loss, _ = bgnbd._bgnbd_loss(np.log([1.0, 2, 1, 1]), np.array([[0.0], [0], [6]]), np.ones(1))
    assert loss == pytest.approx(-np.log(2 / 8) - gammaln(1))


def test_nothing_to_learn_is_said():
    none, some = np.zeros(30), np.full(30, 9.0)
    with pytest.raises(NotPromotedError, match="nobody bought a second time"):
        fit_bgnbd(none, none, some)
    with pytest.raises(NotPromotedError, match="nobody bought a second time"):
        fit_bgnbd(*(np.empty(0),) * 3)
    with pytest.raises(NotPromotedError, match="no two customers differ"):
        fit_gamma_gamma(some, some)
