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
# Ten cells on the last published refresh of a workspace: the folder that `CDP_WORKSPACE` names, or
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
crosswalk = cdp.table("crosswalk")
current = crosswalk.filter(crosswalk.valid_to.isnull())
known = [customers.sources.length().desc(), customers.records, customers.customer_id]
somebody = customers.order_by(known).limit(1)
fields = ["given_name", "surname", "birth_date", "postcode", "email", "phone"]
unified = current.semi_join(somebody, "customer_id").join(
    cdp.table("records"), ["source", "source_record_id"]
)
unified.select("customer_id", "source", "source_record_id", *fields).to_pandas()

# %% Why: the evidence for each pair of these records
edges = cdp.table("edges")
keys = unified.select(record=unified.source + ":" + unified.source_record_id)
edges.filter(edges.record_l.isin(keys.record), edges.record_r.isin(keys.record)).to_pandas()

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

# %% Beside the champion, on the same customers at the test instant
from sklearn.metrics import average_precision_score, roc_auc_score

champion = cdp.model("purchase_30d")
bought = frame.loc[is_test, "label"]
scores = {
    "own": own.predict_proba(features[is_test])[:, 1],
    f"champion (version {champion.version})": champion.predict(frame[is_test]),
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

# %% One customer, scored online as the API does, with the reasons
from cdp_ml.online import open_online, score

published = cdp.table("scores").filter(lambda t: t.model == "purchase_30d")
(likeliest,) = published.order_by(published.score.desc()).limit(1).customer_id.execute()
answer = score(open_online(cdp.settings), likeliest, "purchase_30d")
print(f"{answer['customer_id']} buys within 30 days with a probability of {answer['score']:.0%}")
pd.DataFrame(answer["reasons"])
