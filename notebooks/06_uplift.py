# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Uplift: whom a campaign changes
#
# Who buys after a letter would perhaps have bought without one. Where chance decided who got it,
# the difference between the arms is what the letter did; a model of uplift asks for whom it did
# most. The effect is small, the noise large: most of this is about not fooling oneself.

# %% The experiment
import numpy as np
import pandas as pd

import cdp_ml

cdp = cdp_ml.open()
spec = cdp.models["spring_2026_uplift"]
frame = cdp.training_set(spec.name)  # traits as of the campaign's start, arm, outcome
treated = frame["arm"].eq(spec.treatment).to_numpy().astype(float)
bought = frame["label"].to_numpy()
frame.groupby("arm")["label"].agg(customers="size", bought="sum", share="mean").round(3)

# %% What the campaign did on average
shares = [bought[treated == arm].mean() for arm in (1, 0)]
sizes = [(treated == arm).sum() for arm in (1, 0)]
effect = shares[0] - shares[1]
error = 1.96 * np.sqrt(sum(p * (1 - p) / n for p, n in zip(shares, sizes, strict=True)))
print(f"{effect:+.3f} more buy, if treated (95%: {effect - error:+.3f} to {effect + error:+.3f})")

# %% [markdown]
# Only chance makes arms comparable. Before the campaign, nothing should tell them apart but noise:
# of 80 features, 4 will differ "significantly" even so.

# %% Were the arms alike before?
inputs = [c for c in frame.select_dtypes("number").columns if c != "label"]
means = frame.groupby(treated)[inputs].mean()
difference = ((means.loc[1] - means.loc[0]) / frame[inputs].std()).dropna()
noise = 2 / np.sqrt(len(frame))  # of a difference of means, in standard deviations
axes = difference.plot.hist(bins=25, figsize=(8, 3))
axes.axvspan(-2 * noise, 2 * noise, alpha=0.15, color="grey")
axes.set(title="Differences between the arms; grey is where 95% lie by chance")
axes.set(xlabel="Standard deviations", ylabel="Features")

# %% [markdown]
# ## Whom it changed
#
# One asks a question per group, not per customer: nobody is seen both with and without the letter.

# %% The effect in groups of customers
groups = pd.qcut(frame["days_since_last_order"], 4)
rates = frame.assign(treated=treated).pivot_table("label", groups, "treated", "mean", observed=True)
counts = frame.assign(treated=treated).pivot_table(
    "label", groups, "treated", "size", observed=True
)
uplift = rates[1.0] - rates[0.0]
errors = 1.96 * np.sqrt((rates * (1 - rates) / counts).sum(axis=1))
axes = uplift.plot.bar(yerr=errors, rot=15, figsize=(8, 3.5), capsize=4)
axes.axhline(effect, color="grey", linestyle=":")
axes.set(title="Uplift by recency, 95% intervals; dotted the average")
axes.set(xlabel="Days since the last order", ylabel="More who buy")

# %% A learner of one's own: two regressions, one an arm, each scoring whom it has not seen
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

few = ["days_since_last_order", "orders_365d", "spend_365d", "visits_30d", "email_open_rate_90d"]
x = frame[few]
scores = {"T-learner": np.zeros(len(x)), "propensity": np.zeros(len(x))}
folds = StratifiedKFold(5, shuffle=True, random_state=1).split(x, 2 * treated + bought)
for seen, unseen in folds:
    chance = []
    for arm in (1, 0):
        rows = seen[treated[seen] == arm]
        fill = SimpleImputer(strategy="median", keep_empty_features=True)
        arm_model = make_pipeline(fill, StandardScaler(), LogisticRegression(C=0.1))
        chance.append(arm_model.fit(x.iloc[rows], bought[rows]).predict_proba(x.iloc[unseen])[:, 1])
    scores["T-learner"][unseen] = chance[0] - chance[1]
    scores["propensity"][unseen] = chance[1]
print(pd.DataFrame(scores).describe().round(3).loc[["mean", "std", "min", "max"]])

# %% [markdown]
# The Qini curve orders customers by a score and counts the further buyers if only the best were
# treated. Its coefficient is 0 for chance. Targeting by propensity, as most do, is the rival.

# %% The Qini curves
from cdp_ml.learn.uplift_experiment import experiment_of
from cdp_ml.learn.uplift_metrics import curve_table, uplift_metrics

experiment = experiment_of(frame, tuple(few), spec.treatment, spec.name)
curves = curve_table(experiment, scores).to_pandas().set_index("share")
axes = (curves * len(frame)).plot(figsize=(8, 4), style={"random": ":"})
axes.set(title="Qini", xlabel="Share of customers treated", ylabel="Further buyers")

# %% With intervals
judged = uplift_metrics(bought, treated, scores)
pd.Series(
    {name: str(estimate) for name, estimate in judged.items()}, name="95% interval"
).to_frame()

# %% [markdown]
# The platform tries three learners by cross-fitting, beside a rule on one feature and targeting by
# propensity. It promotes one only if its Qini's interval is above 0 and above the propensity's;
# with too few customers it says how many are needed. That is no failure: a campaign that is aimed
# by noise costs more than one that is sent to all.

# %% What the platform says of it
try:
    print(cdp.train(spec.name).verdict)
except cdp_ml.CdpError as refusal:
    print(refusal)
