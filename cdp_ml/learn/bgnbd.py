"""How many purchases, and how much spend, to expect of a customer: BG/NBD and Gamma-Gamma.

The yardstick of every purchase, churn and value model. Fitted by maximum likelihood with SciPy:
`pymc-marketing` samples by MCMC and brings PyMC along, and `lifetimes` is no longer maintained.

BG/NBD: Fader, Hardie and Lee, "Counting your customers the easy way", Marketing Science 24 (2005).
Gamma-Gamma: Fader and Hardie, "The Gamma-Gamma model of monetary value" (2013).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cdp_ml.errors import NotPromotedError

if TYPE_CHECKING:
    import numpy as np

MOST = 100_000
"""More customers than these do not sharpen four parameters: the fit takes a sample of them."""


@dataclass(frozen=True)
class BgNbd:
    """Purchases come at a gamma-distributed rate, until the customer leaves after one of them.

    Times are in the unit of those that it was fitted to. `log_likelihood` is that of the fit.
    """

    r: float
    alpha: float
    a: float
    b: float
    log_likelihood: float = float("nan")

    def alive(self, x: np.ndarray, t_x: np.ndarray, age: np.ndarray) -> np.ndarray:
        """The probability that a customer has not left; 1 for one-time buyers, so no propensity.

        Args:
            x: repeat purchases: all but the first.
            t_x: time from the first purchase to the last.
            age: time from the first purchase until now.
        """
        import numpy as np

        odds = np.log(self.a) - np.log(self.b + np.maximum(x, 1) - 1)
        odds = odds + (self.r + x) * (np.log(self.alpha + age) - np.log(self.alpha + t_x))
        gone = np.exp(np.minimum(odds, 700.0))
        found: np.ndarray = np.where(x > 0, 1 / (1 + gone), 1.0)
        return found

    def buys(self, x: np.ndarray, t_x: np.ndarray, age: np.ndarray, ahead: float) -> np.ndarray:
        """The probability of at least one purchase in the time `ahead`: P(X > 0).

        Whoever is alive stays so until the next purchase: none comes if the rate brings none.
        """
        silent = ((self.alpha + age) / (self.alpha + age + ahead)) ** (self.r + x)
        found: np.ndarray = self.alive(x, t_x, age) * (1 - silent)
        return found

    def purchases(
        self, x: np.ndarray, t_x: np.ndarray, age: np.ndarray, ahead: float
    ) -> np.ndarray:
        """The expected number of purchases in the time `ahead`: equation (10) of the paper.

        Where the equation overflows, as for hundreds of purchases within weeks, by quadrature.
        """
        import numpy as np
        from scipy.special import hyp2f1

        a = self.a if abs(self.a - 1) > 1e-6 else 1 + 1e-6  # the equation divides by a - 1
        r, b, since = self.r + x, self.b + x, self.alpha + age
        power = hyp2f1(r, b, a + b - 1, ahead / (since + ahead))
        with np.errstate(all="ignore"):
            grown = (a + b - 1) / (a - 1) * (1 - (since / (since + ahead)) ** r * power)
        lost = ~np.isfinite(grown)
        if np.any(lost):
            grown[lost] = _grown(a, b[lost], r[lost], ahead / since[lost])
        found: np.ndarray = self.alive(x, t_x, age) * grown
        return found


def _grown(a: float, b: np.ndarray, r: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """The mean of (1 - (1 + p ratio)^-r) / p for p of a beta distribution (a, b)."""
    import numpy as np
    from scipy.special import betaincinv

    points, weights = np.polynomial.legendre.leggauss(100)
    p = np.maximum(betaincinv(a, b[:, None], (points + 1) / 2), 1e-300)
    value = -np.expm1(-r[:, None] * np.log1p(p * ratio[:, None])) / p
    found: np.ndarray = value @ weights / 2
    return found


@dataclass(frozen=True)
class GammaGamma:
    """The value of purchases: gamma-distributed around a mean that itself differs by customer."""

    p: float
    q: float
    v: float
    log_likelihood: float = float("nan")

    def mean_value(self, n: np.ndarray, mean: np.ndarray) -> np.ndarray:
        """The expected value of a purchase: between a customer's own mean and that of all.

        Args:
            n: purchases whose value is known; where 0, the mean of all customers is expected.
            mean: their mean value.
        """
        found: np.ndarray = self.p * (self.v + n * mean) / (self.p * n + self.q - 1)
        return found


def fit_bgnbd(x: np.ndarray, t_x: np.ndarray, age: np.ndarray) -> BgNbd:
    """Fit BG/NBD by maximum likelihood.

    Args:
        x: repeat purchases of each customer: all but the first.
        t_x: time from the first purchase to the last; 0 without repeat.
        age: time from the first purchase to the end of observation.

    Raises:
        NotPromotedError: if nobody bought again, or no time has passed.
    """
    import numpy as np

    if not (len(x) and x.max() > 0 and age.max() > 0):
        raise NotPromotedError("BG/NBD: nobody bought a second time: nothing to learn from")
    x, t_x, age = _sample(x, t_x, age)
    rows, times = np.unique(np.column_stack([x, t_x, age]), axis=0, return_counts=True)
    typical = float(np.mean(age)) or 1.0
    start = np.log([0.5, typical / 2, 1.0, 2.0])
    best, loss = _minimize(lambda p: _bgnbd_loss(p, rows.T, times), start)
    r, alpha, a, b = best
    return BgNbd(r, alpha, a, b, log_likelihood=-loss)


def fit_gamma_gamma(n: np.ndarray, mean: np.ndarray) -> GammaGamma:
    """Fit Gamma-Gamma by maximum likelihood.

    Args:
        n: purchases of each customer.
        mean: their mean value; customers without purchases, or whose mean is not positive, do not
            count.

    Raises:
        NotPromotedError: if no customer counts, or all have the same mean.
    """
    import numpy as np

    counts = (n > 0) & (mean > 0)
    n, mean = _sample(n[counts], mean[counts])
    if len(n) == 0 or np.ptp(mean) == 0:
        raise NotPromotedError("Gamma-Gamma: no two customers differ in value: nothing to learn")
    start = np.log([2.0, 2.0, float(np.median(mean))])  # of p, q - 1 and v
    (p, above, v), loss = _minimize(lambda s: _gamma_gamma_loss(s, n, mean), start)
    return GammaGamma(p, 1 + above, v, log_likelihood=-loss)


def _minimize(
    loss: Callable[[np.ndarray], tuple[float, np.ndarray]], start: np.ndarray
) -> tuple[list[float], float]:
    """The positive parameters with the least loss, given their logarithms to begin with."""
    import numpy as np
    from scipy.optimize import minimize

    bounds = [(s - 12, s + 12) for s in start]  # data without a maximum ends somewhere
    found: Any = minimize(
        loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-13}
    )
    return [float(v) for v in np.exp(found.x)], float(found.fun)


def _bgnbd_loss(logs: np.ndarray, rows: np.ndarray, times: np.ndarray) -> tuple[float, np.ndarray]:
    """The negative log-likelihood and its gradient: the paper's A1 to A4."""
    import numpy as np
    from scipy.special import digamma, gammaln

    (r, alpha, a, b), (x, t_x, age) = np.exp(logs), rows
    repeats = x > 0
    a1 = gammaln(r + x) - gammaln(r) + r * np.log(alpha)
    a2 = gammaln(a + b) + gammaln(b + x) - gammaln(b) - gammaln(a + b + x)
    a3 = -(r + x) * np.log(alpha + age)
    before = b + np.where(repeats, x, 1) - 1
    a4 = np.where(repeats, np.log(a / before) - (r + x) * np.log(alpha + t_x), -np.inf)
    both = np.logaddexp(a3, a4)
    still, left = np.exp(a3 - both), np.exp(a4 - both)
    by_r = digamma(r + x) - digamma(r) + np.log(alpha)
    by_r -= still * np.log(alpha + age) + left * np.log(alpha + t_x)
    by_alpha = r / alpha - (r + x) * (still / (alpha + age) + left / (alpha + t_x))
    by_a = digamma(a + b) - digamma(a + b + x) + left / a
    by_b = digamma(a + b) + digamma(b + x) - digamma(b) - digamma(a + b + x) - left / before
    slopes = np.array([times @ by_r, times @ by_alpha, times @ by_a, times @ by_b])
    return -float(times @ (a1 + a2 + both)), -slopes * np.exp(logs)


def _gamma_gamma_loss(
    logs: np.ndarray, n: np.ndarray, mean: np.ndarray
) -> tuple[float, np.ndarray]:
    """The negative log-likelihood and its gradient, by the logarithms of p, q - 1 and v."""
    import numpy as np
    from scipy.special import digamma, gammaln

    p, above, v = np.exp(logs)
    q, total = 1 + above, n * mean
    likely = gammaln(p * n + q) - gammaln(p * n) - gammaln(q) + q * np.log(v)
    likely += (p * n - 1) * np.log(mean) + p * n * np.log(n) - (p * n + q) * np.log(v + total)
    shared = digamma(p * n + q) - np.log(v + total)
    by_p = n * (shared - digamma(p * n) + np.log(total))
    by_q = shared - digamma(q) + np.log(v)
    by_v = q / v - (p * n + q) / (v + total)
    slopes = np.array([by_p.sum() * p, by_q.sum() * above, by_v.sum() * v])
    return -float(likely.sum()), -slopes


def _sample(*columns: np.ndarray) -> tuple[np.ndarray, ...]:
    """The rows, or `MOST` of them drawn at random; the same rows give the same sample."""
    import numpy as np

    rows = len(columns[0])
    if rows <= MOST:
        return columns
    drawn = np.random.default_rng(1).choice(rows, MOST, replace=False)
    return tuple(column[drawn] for column in columns)
