# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # A first look at the published customers
#
# A tour of the last published refresh of a workspace: the folder that `CDP_WORKSPACE` names, or
# the one in which Jupyter runs. `make demo` publishes one in the repository's folder. Open this
# file as a notebook with Jupytext, or run it as a script.

# %% What is published, and as of when
import pandas as pd

import cdp_ml

cdp = cdp_ml.open()
print(f"as of {cdp.as_of:%Y-%m-%d}: {', '.join(cdp.tables)}")

# %% [markdown]
# A table is an [Ibis](https://ibis-project.org) expression: it computes where the data lies, and
# `.to_pandas()` brings the result into memory. `cdp-ml tables` tells what the columns mean.

# %% Customers, by the sources that know them
customers = cdp.table("customers")
by_sources = customers.group_by("sources").aggregate(
    customers=customers.count(), mean_records=customers.records.mean()
)
by_sources.order_by(by_sources.customers.desc()).limit(10).to_pandas()

# %% How records became one customer: somebody whom many sources know
known = [customers.sources.length().desc(), customers.records, customers.customer_id]
(somebody,) = customers.order_by(known).limit(1).customer_id.execute()
crosswalk = cdp.table("crosswalk")
theirs = crosswalk.filter(crosswalk.valid_to.isnull(), crosswalk.customer_id == somebody)
fields = ["given_name", "surname", "birth_date", "postcode", "email", "phone"]
unified = theirs.join(cdp.table("records"), ["source", "source_record_id"])
unified.select("source", "source_record_id", *fields).to_pandas()

# %% Why: the links that hold them together, the weakest first
pd.DataFrame(cdp.why(somebody)["needed"])

# %% Traits: what each customer did, as of the run's instant and of every training snapshot
traits = cdp.table("traits_transactional")
now = traits.filter(traits.event_timestamp == cdp.as_of).to_pandas()
now[["orders_90d", "spend_365d", "days_since_last_order"]].describe().round(1)

# %% [markdown]
# ## A model of one's own
#
# A training set holds the customers whom a model is about at several instants, with the features
# as they were known then, and what happened afterwards. The split is by time: the label windows of
# the training instants have closed before the test instant.

# %% The training set
frame = cdp.training_set("purchase_30d")
split = cdp.split("purchase_30d")
frame.groupby("event_timestamp")["label"].agg(customers="size", bought="mean").assign(
    part=lambda rows: ["test" if instant == split.test else "train" for instant in rows.index]
)

# %% A model of scikit-learn's, fitted on the training instants
from sklearn.ensemble import HistGradientBoostingClassifier

is_test = frame["event_timestamp"] == split.test
features = frame.drop(columns=["customer_id", "event_timestamp", "label"]).select_dtypes("number")
own = HistGradientBoostingClassifier(learning_rate=0.05, max_leaf_nodes=8, random_state=0)
own.fit(features[~is_test], frame.loc[~is_test, "label"])

# %% Beside the platform's own, trained by the same rows, on the same customers at the test instant
from sklearn.metrics import average_precision_score, roc_auc_score

trained = cdp.train("purchase_30d")  # `register=True` would record it in MLflow
print(trained.verdict)
bought = frame.loc[is_test, "label"]
scores = {
    "own": own.predict_proba(features[is_test])[:, 1],
    "platform": trained.predictor.predict(frame[is_test]),
}
measures = {"AUC": roc_auc_score, "average precision": average_precision_score}
compared = {
    name: {measure: judge(bought, score) for measure, judge in measures.items()}
    for name, score in scores.items()
}
pd.DataFrame(compared).T.round(4)

# %% [markdown]
# ## What follows from the models

# %% Segments as they are now
stays = cdp.table("segment_membership")
inside = stays.filter(stays.exited_at.isnull())
inside.group_by("segment").aggregate(customers=inside.count()).order_by("segment").to_pandas()

# %% The highest score of each model that was promoted
scores = cdp.table("scores").to_pandas()
best = scores.sort_values(["score", "customer_id"]).groupby("model").tail(1)
best[["model", "model_version", "customer_id", "score", "cluster"]]

# %% One customer, scored online as the API does, with the reasons
served = [m for m in ("purchase_30d", "churn_90d", "clv_180d") if m in set(scores["model"])]
answer = cdp.score(best.set_index("model").loc[served[0], "customer_id"], served[0])
print(f"{answer['model']} of {answer['customer_id']}: {answer['score']:.2f}")
pd.DataFrame(answer["reasons"])

# %% [markdown]
# The other notebooks go deeper: [identity](02_identity.py), [features](03_features.py), a
# [propensity](04_propensity.py), [segments](05_segments.py), [uplift](06_uplift.py), and
# [scores online](07_online.py).
