# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # A propensity in ten cells
#
# Who buys within 30 days? A baseline, a regression, trees of one's own, and the platform's model,
# all judged on the same customers at an instant that none of them has seen.

# %% 1. The model is a file
import pandas as pd

import cdp_ml

cdp = cdp_ml.open()
spec = cdp.models["purchase_30d"]
asked = ("description", "population", "label", "features", "snapshots", "cadence_days")
pd.Series({name: getattr(spec, name) for name in asked}, name=spec.name).to_frame()

# %% 2. Training and test, apart in time
frame, split = cdp.training_set(spec.name), cdp.split(spec.name)
past = frame[frame["event_timestamp"].isin(split.train)]
test = frame[frame["event_timestamp"] == split.test]
y = test["label"].to_numpy()
inputs = [c for c in frame.select_dtypes("number").columns if c != "label"]
print(f"train {len(past):,} rows at {len(split.train)} instants, test {len(test):,} customers")

# %% 3. What costs nothing: who bought last, who bought often
scores = {
    "recency": -test["days_since_last_order"].fillna(10_000).to_numpy(),
    "frequency": test["orders_365d"].to_numpy(),
}
print({name: len(set(score)) for name, score in scores.items()}, "different scores")

# %% 4. A logistic regression
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import QuantileTransformer

logistic = make_pipeline(
    SimpleImputer(strategy="median", keep_empty_features=True),
    QuantileTransformer(n_quantiles=100, output_distribution="normal", random_state=1),
    LogisticRegression(C=0.05, max_iter=500),
)
logistic.fit(past[inputs], past["label"])
scores["logistic"] = logistic.predict_proba(test[inputs])[:, 1]
pd.Series(logistic[-1].coef_[0], inputs).sort_values(key=abs, ascending=False).head(6).round(2)

# %% 5. Trees: on the newest snapshot, and on all
from lightgbm import LGBMClassifier

newest = past[past["event_timestamp"] == split.train[-1]]
for name, rows in {"trees, one snapshot": newest, "trees": past}.items():
    trees = LGBMClassifier(
        n_estimators=200, num_leaves=8, learning_rate=0.03, min_child_samples=30,
        subsample=0.8, subsample_freq=1, colsample_bytree=0.7, reg_lambda=5, verbose=-1, n_jobs=2,
    )  # fmt: skip
    scores[name] = trees.fit(rows[inputs], rows["label"]).predict_proba(test[inputs])[:, 1]
print(f"{len(newest):,} rows and {len(past):,}")

# %% 6. The platform's own: chosen on earlier instants, judged on this test, with its verdict
trained = cdp.train(spec.name)
scores["platform"] = trained.scores["model"]
print(trained.verdict)

# %% 7. All of them, with 95% intervals over customers
from cdp_ml.learn.evaluate import propensity_metrics

ranks = ("recency", "frequency")
judged = {n: propensity_metrics(y, s, probability=n not in ranks) for n, s in scores.items()}
pd.DataFrame(judged).T[["auc", "average_precision", "log_loss", "ece"]].fillna("").astype(str)

# %% [markdown]
# Intervals that overlap do not say that two models are alike: they share the customers. A paired
# bootstrap draws the same customers for both.

# %% 8. Is it better? The gain in AUC on the same customers
from cdp_ml.learn.evaluate import auc_gain

others = {n: s for n, s in scores.items() if n != "platform"}
gains = {n: str(auc_gain(y, scores["platform"], s)) for n, s in others.items()}
pd.Series(gains, name="gain of the platform's model in AUC").to_frame()

# %% 9. Do probabilities mean what they say?
import matplotlib.pyplot as plt
from sklearn.calibration import CalibrationDisplay

figure, axes = plt.subplots(figsize=(6, 5), layout="constrained")
for name in ("logistic", "trees", "platform"):
    CalibrationDisplay.from_predictions(
        y, scores[name], n_bins=8, strategy="quantile", name=name, ax=axes
    )
axes.set(title="Reliability", xlabel="Predicted probability", ylabel="Share who bought")

# %% 10. Who is worth a letter: what the best tenth holds
deciles = trained.evaluation.tables["deciles"].to_pandas()
best = deciles.iloc[0]
print(
    f"the best tenth holds {best['gain']:.0%} of those who buy, {best['lift']:.1f} times its share"
)
deciles.round(3)

# %% [markdown]
# `cdp.train("purchase_30d", register=True)` records the run in MLflow with its plots, model card
# and comparison with the champion, and promotes it if its gate lets it; `cdp-ml ui` shows it.
# Another propensity is another file in `models/`: copy `purchase_30d.yaml`, change its label.
