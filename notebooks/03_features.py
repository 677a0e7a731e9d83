# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Features, as they were known then
#
# A trait is what a customer's activity says as of an instant: `orders_90d`, `spend_365d`,
# `days_since_last_order`. Each is defined once, in `cdp_ml/traits/definitions.py`; training and
# serving both take it from there, through Feast. This notebook looks at the definitions, computes
# traits as of several instants, and builds a training set that knows nothing of its future.

# %% What is defined
import pandas as pd

import cdp_ml
from cdp_ml.traits import TRAITS

cdp = cdp_ml.open()
defined = pd.DataFrame([{f: getattr(t, f) for f in ("name", "group", "meaning")} for t in TRAITS])
print(defined["group"].value_counts().to_string())
defined.sample(8, random_state=1)

# %% [markdown]
# `traits` computes them as of any instants, from the facts and links that were known at each.

# %% One customer through the year
from datetime import timedelta

instants = [cdp.as_of - timedelta(days=30 * months) for months in range(12, -1, -1)]
now = cdp.table("traits_transactional").filter(lambda t: t.event_timestamp == cdp.as_of)
(somebody,) = now.order_by([now.orders_365d.desc(), "customer_id"]).limit(1).customer_id.execute()
through = cdp.traits(*instants, customers=[somebody]).set_index("event_timestamp")
watched = ["orders_90d", "spend_365d", "days_since_last_order", "visits_30d"]
through[watched].plot(subplots=True, marker="o", figsize=(8, 6), title=f"Customer {somebody}")
through[watched].round(1)

# %% [markdown]
# The refresh keeps the traits of today and of each training snapshot. What it kept of an earlier
# instant is what one computes today for that instant, although more facts have come since: the past
# does not change.

# %% Computed now for the test instant, beside what the refresh published
split = cdp.split("purchase_30d")
published = cdp.table("traits_transactional").filter(lambda t: t.event_timestamp == split.test)
both = cdp.traits(split.test).merge(published.to_pandas(), on="customer_id", suffixes=("", "_kept"))
same = {t: both[t].equals(both[f"{t}_kept"]) for t in ("orders_90d", "spend_365d", "returns_365d")}
print(f"{len(both):,} customers as of {split.test:%Y-%m-%d}: {same}")

# %% [markdown]
# ## A training set
#
# It holds the model's population at several instants, the features as known at each, and what
# happened within the horizon afterwards. Many snapshots are worth more than one: a customer is seen
# in more situations, and all seasons are.

# %% Instants, customers and outcomes
frame = cdp.training_set("purchase_30d")
at = frame.groupby("event_timestamp")["label"].agg(customers="size", bought="mean")
at["part"] = ["test" if instant == split.test else "train" for instant in at.index]
at.round(3)

# %% The split: every training window has closed before the test instant
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
for row, instant in enumerate(split.instants):
    color = "#d55e00" if instant == split.test else "#1f5fa8"
    axes.plot([instant, instant + split.horizon], [row, row], color=color, linewidth=4)
    axes.plot(instant, row, "o", color=color)
axes.axvline(split.test, color="grey", linestyle=":")
axes.axvline(split.as_of, color="grey")
axes.set(title="Instants (dots) and the windows of their labels; the test in orange", yticks=[])

# %% [markdown]
# Explore on the training instants alone: whoever chooses by the test has seen it.

# %% What the outcome depends on
past = frame[frame["event_timestamp"].isin(split.train)]
recency = pd.cut(past["days_since_last_order"], [0, 7, 14, 30, 60, 120, 240, 1000])
rates = past.groupby(recency, observed=True)["label"].agg(["mean", "size"])
axes = rates["mean"].plot.bar(rot=20, xlabel="Days since the last order", ylabel="Share who buy")
axes.set_title("Who bought lately buys again")

# %% Which single feature ranks best
from sklearn.metrics import roc_auc_score

numbers = past.drop(columns=["label"]).select_dtypes("number")
ranked = numbers.fillna(-1).apply(lambda column: roc_auc_score(past["label"], column))
best = ranked.sub(0.5).abs().nlargest(12).index
axes = ranked[best][::-1].sub(0.5).plot.barh(figsize=(8, 4))
axes.set(title="AUC of one feature alone, above or below chance", xlabel="AUC - 0.5")

# %% [markdown]
# ## What is refused
#
# Snapshots whose windows overlap the test, a column from after the instant, or a feature that
# orders the outcomes without a fault: training stops, and says which.

# %% A leak, planted
from cdp_ml.learn.training import train

leaking = frame.assign(orders_next_30d=frame["label"] * 2)
try:
    train(cdp.models["purchase_30d"], leaking, split)
except cdp_ml.CdpError as refusal:
    print(refusal)
