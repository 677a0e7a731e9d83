# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Who is whom
#
# People's records lie in several sources, with misspellings, former addresses and shared phones.
# The refresh links those that are one person. This notebook shows how many became one, why, what is
# doubtful, and what a decision of yours would change. Nothing here writes anything.

# %% How many records became how many customers
import matplotlib.pyplot as plt
import pandas as pd

import cdp_ml

cdp = cdp_ml.open()
crosswalk = cdp.table("crosswalk")
current = crosswalk.filter(crosswalk.valid_to.isnull())
by_source = current.group_by("source").aggregate(
    records=current.count(), customers=current.customer_id.nunique()
)
by_source.order_by("source").to_pandas()

# %% [markdown]
# Within a source, fewer customers than records means doubles: somebody registered twice. Across
# sources, most customers have one record in each that knows them.

# %% How large customers are
customers = cdp.table("customers").to_pandas()
sizes = customers["records"].value_counts().sort_index()
axes = sizes.plot.bar(xlabel="Records of a customer", ylabel="Customers", rot=0)
axes.set_title(f"{sizes @ sizes.index:,} records are {len(customers):,} customers")

# %% One of them, known to many sources, with all that they say
most = customers["sources"].str.count(",")
widely = customers[most == most.max()].sort_values(["identity_confidence", "customer_id"])
who = widely["customer_id"].iloc[0]
fields = ["given_name", "surname", "birth_date", "postcode", "email", "phone"]
records = current.join(cdp.table("records"), ["source", "source_record_id"])
records.filter(records.customer_id == who).select("source", *fields).to_pandas()

# %% [markdown]
# `why` tells what holds the records together: the strongest links without which the customer would
# fall apart, the weakest first. Certain ones come from an identifier that two records bear, such as
# a loyalty card; the others are as probable as the linkage model says.

# %% Why these records are one customer
held = cdp.why(who)
shown = ["record_l", "record_r", "kind", "match_probability", "evidence"]
pd.DataFrame(held["needed"])[shown]

# %% [markdown]
# `explain` takes a pair apart. Each field adds bits of evidence, or takes some: 10 bits make the
# odds of a match a thousand times larger. The prior is against: two records picked at random are
# hardly ever one person.

# %% What speaks for and against the weakest of these links
weakest = held["needed"][0]
pair = cdp.explain(weakest["record_l"], weakest["record_r"])
steps = pd.DataFrame(pair["steps"]).set_index("name")
print(f"{pair['weight']:+.1f} bits: one person with a probability of {pair['probability']:.4f}")
steps[["level", "bits", "rarity"]].fillna({"level": ""}).round(1)

# %% The same as a waterfall
end = steps["bits"].cumsum()
colors = ["#2f7d46" if bits > 0 else "#b03a2e" for bits in steps["bits"]]
figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
axes.bar(steps.index, steps["bits"], bottom=end - steps["bits"], color=colors)
axes.axhline(0, color="grey", linewidth=0.8)
axes.tick_params(axis="x", rotation=30)
axes.set(title="From the prior to the weight of the match", ylabel="Bits, added up")

# %% [markdown]
# ## What is doubtful
#
# Pairs between certain and improbable wait for people. `cdp-ml identity review --out FILE.csv`
# writes them for clerical work, `cdp-ml identity decide FILE.csv` reads the decisions.

# %% The queue, the most probable first
from cdp_ml.identity.review import merge, queue, what_would_change

doubtful = queue(cdp.identity).to_pandas()
print(f"{len(doubtful)} pairs wait for a decision")
doubtful[["record_l", "record_r", "reason", "match_probability", "evidence"]].head()

# %% What it would change to say of the first that it is one person; nothing is written
one, other = doubtful.loc[0, ["record_l", "record_r"]]
decision = merge(cdp.identity, one, other, actor="me", reason="same handwriting")
what_would_change(cdp.identity, decision).moves.to_pandas()

# %% [markdown]
# ## Who was whom, as known then
#
# Links hold from an instant on, and to one: features of last March use those known last March, or
# tomorrow's merges would leak into yesterday's features.

# %% Merges by month, from the log of identity
log = cdp.table("identity_log").to_pandas()
log["month"] = log["event_timestamp"].dt.strftime("%Y-%m")
log.groupby(["month", "event"]).size().unstack(fill_value=0).tail(12)
