"""A campaign as an experiment: what was known of its customers, who was treated, what they did."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cdp_ml.errors import ContractError, NotPromotedError, nearest
from cdp_ml.learn.datasets import in_order, matrix

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from ibis.expr.types import Table


@dataclass(frozen=True)
class Experiment:
    """A campaign's customers: what was known before, who was treated, who had the outcome.

    `x` is customers x features, NaN where unknown; `treated` and `y` are 0 or 1.
    """

    x: np.ndarray
    treated: np.ndarray
    y: np.ndarray
    features: tuple[str, ...]

    def rows(self, chosen: np.ndarray) -> Experiment:
        """The experiment with some of its customers, by a mask or their positions."""
        return Experiment(self.x[chosen], self.treated[chosen], self.y[chosen], self.features)

    @property
    def arms(self) -> dict[str, np.ndarray]:
        """The masks of the customers who were treated, and of the others: treated, control."""
        return {"treated": self.treated == 1, "control": self.treated == 0}

    @cached_property
    def summands(self) -> dict[str, np.ndarray]:
        """What is summed over customers: 1 and the outcome, in each arm."""
        return summands(self.y, self.treated)


def summands(y: np.ndarray, treated: np.ndarray) -> dict[str, np.ndarray]:
    """What is summed over customers: 1 and the outcome `y_`, in each arm."""
    control = 1 - treated
    return {
        "treated": treated,
        "control": control,
        "y_treated": y * treated,
        "y_control": y * control,
    }


def campaign_customers(exposures: Table, campaign: str) -> Table:
    """Who was in which arm of a campaign, and since when.

    Args:
        exposures: table `exposures` with customer_id, as of an instant (`activity_as_of`).
        campaign: its campaign_id.

    Returns:
        customer_id, event_timestamp (the first exposure) and arm; customers whose records were in
        several arms are left out: they show no arm's outcome.
    """
    inside = exposures.filter(exposures.campaign_id == campaign)
    arms = inside.group_by("customer_id").aggregate(
        event_timestamp=inside.event_timestamp.min(),
        arm=inside.arm.min(),
        arms=inside.arm.nunique(),
    )
    return arms.filter(arms.arms == 1).drop("arms")


def experiment_of(frame: Any, features: tuple[str, ...], treatment: str, name: str) -> Experiment:
    """The experiment in a frame.

    Args:
        frame: customer_id, event_timestamp (of the exposure), arm, label (0 or 1) and the features
            as known at that time; one row a customer (Arrow or pandas).
        features: the columns to learn from.
        treatment: the arm to compare with all others.
        name: the model's name, for messages.

    Returns:
        The experiment, its rows by event_timestamp and customer_id.

    Raises:
        ContractError: if a column is missing, or an arm or label is null.
        NotPromotedError: if nobody or everybody was treated.
    """
    import pyarrow.compute as pc

    table = in_order(frame)
    for column in ("arm", "label"):
        _check_complete(table, column, name)
    treated = pc.equal(table["arm"], treatment).to_numpy().astype(float)
    if not 0 < treated.sum() < len(treated):
        arms = pc.unique(table["arm"]).to_pylist()
        hint = "an effect shows only beside customers who were left out"
        if treatment not in arms and len(arms) > 1:
            hint = nearest(treatment, arms)
        raise NotPromotedError(
            f"model '{name}': {int(treated.sum())} of {len(treated)} customers are in the arm "
            f"'{treatment}'; {hint}"
        )
    return Experiment(matrix(table, features), treated, matrix(table, ("label",))[:, 0], features)


def _check_complete(table: pa.Table, column: str, name: str) -> None:
    if column not in table.column_names:
        raise ContractError(f"model '{name}': the training frame has no column '{column}'")
    if unknown := table[column].null_count:
        raise ContractError(f"model '{name}': {unknown} of {table.num_rows} rows have no {column}")
