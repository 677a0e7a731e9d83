# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Segments: found, named, and cut by rules
#
# Clusters group customers who buy alike; they are found by k-means, chosen by how well they hold
# when the data change a little, and named after what sets them apart. Rules in `cdp.yaml` and cuts
# of scores make the other segments. The refresh keeps who entered and left each.

# %% The clusters and their names
import pandas as pd

import cdp_ml

cdp = cdp_ml.open()
champion = cdp.model("clusters")
frame = cdp.training_set("clusters")
frame["cluster"] = champion.assign(frame)
inputs = list(champion.features)
profile = frame.groupby("cluster")[inputs].median()
profile.insert(0, "customers", frame["cluster"].value_counts())
profile.sort_values("spend_365d", ascending=False).round(0)

# %% Where they lie
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
for name, members in frame.groupby("cluster"):
    axes.scatter(members["days_since_last_order"], members["spend_365d"] + 1, s=8, label=name)
axes.set(xscale="symlog", yscale="log", title="Recency and spend of each customer")
axes.set(xlabel="Days since the last order", ylabel="Spend within a year")
axes.legend(frameon=False)

# %% [markdown]
# How many clusters? A silhouette alone misleads: it is best for one huge group and a handful of
# outliers. Stability asks whether other draws of the customers give the same groups (adjusted Rand
# index, 1 is the same); clusters that nobody would find again cannot be acted upon.

# %% How many: stability beside silhouette, from scratch
from cdp_ml.learn.training import train

chosen = train(cdp.models["clusters"], frame.drop(columns="cluster"), cdp.split("clusters"))
tried = chosen.evaluation.tables["candidates"].to_pandas().set_index("clusters")
axes = tried[["stability", "silhouette"]].plot(marker="o", xticks=tried.index, ylim=(0, 1))
axes.fill_between(tried.index, tried["stability_low"], tried["stability_high"], alpha=0.2)
axes.set_title("Stability, with its 95% interval, and silhouette")
print(chosen.verdict)

# %% [markdown]
# Names come from the center of each cluster, in standard deviations from the mean customer. A
# refresh begins at the former centers and hands the names on, so that "recently active" stays who
# it was.

# %% What the names are made of
from cdp_ml.learn.report import figures

figures(chosen)["profiles"]

# %% A new customer is assigned without a refresh
newcomer = pd.DataFrame(
    {"days_since_last_order": [3.0], "orders_365d": [1.0], "spend_365d": [40.0]}
)
print(f"bought once, three days ago, for 40: {champion.assign(newcomer)[0]!r}")

# %% What the clusters are worth: the mean of each promoted model's scores
scores = cdp.table("scores").to_pandas()
worth = scores.pivot(index="customer_id", columns="model", values="score")
worth = frame[["customer_id", "cluster"]].join(worth, on="customer_id")
worth.drop(columns=["customer_id", "clusters"]).groupby("cluster").mean().round(2)

# %% [markdown]
# ## Segments of rules
#
# A rule is an SQL condition on a customer and the traits. Try it here, then write it into
# `cdp.yaml`; the next refresh counts who enters.

# %% A segment in the making: good customers who fall silent
traits = cdp.traits()
silent = traits.query("spend_365d >= 300 and days_since_last_order > 60")
mailable = silent["marketing_consent"].eq(1).mean()
print(f"{len(silent)} customers; {mailable:.0%} of them agreed to be written to")
silent[["orders_365d", "spend_365d", "days_since_last_order", "visits_30d"]].describe().round(0)

# %% All segments now, and what two of them share
stays = cdp.table("segment_membership").to_pandas()
inside = stays[stays["exited_at"].isna()]
members = pd.crosstab(inside["customer_id"], inside["segment"])
members.T @ members
