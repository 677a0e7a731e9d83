# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Scores online, as the API gives them
#
# `cdp-ml serve` answers over HTTP; this notebook asks the same functions without a server.
# Features come from the online store that the refresh filled, the model is its champion: a score
# online equals the one in the table `scores`.

# %% What can be asked
import pandas as pd

import cdp_ml
from cdp_ml.online import models, profile, resolve, segments

cdp = cdp_ml.open()
pd.DataFrame(models(cdp.online))

# %% One customer's score, with the reasons
scores = cdp.table("scores").to_pandas()
served = [m for m in ("purchase_30d", "churn_90d", "clv_180d") if m in set(scores["model"])]
model = served[0]  # the first of these that was promoted
scores = scores[scores["model"] == model]
somebody = scores.sort_values(["score", "customer_id"]).iloc[-1]["customer_id"]
answer = cdp.score(somebody, model)
print(f"{model}: {answer['score']:.2f}, above {answer['percentile']:.0%} of the customers")
reasons = pd.DataFrame(answer["reasons"])
reasons.round(2)

# %% [markdown]
# A reason is a share of the log-odds (TreeSHAP; for a spend, of its logarithm): contributions of
# all features and the mean add up to the score. They tell what moved the model, not what would move
# the customer.

# %% The reasons as a picture
axes = reasons[::-1].plot.barh("feature", "contribution", legend=False, figsize=(8, 2))
axes.set(title=f"What moves the score of {somebody}", ylabel="")
axes.set_xlabel("Adds to the logarithm of the " + ("spend" if model == "clv_180d" else "odds"))

# %% Online equals batch
some = scores.sample(50, random_state=1).set_index("customer_id")["score"]
online = pd.Series({c: cdp.score(c, model)["score"] for c in some.index})
print(f"{len(some)} customers, largest difference {(online - some).abs().max():.1e}")

# %% How long a call takes here, the reasons included
from time import perf_counter

took = []
for customer in some.index:
    start = perf_counter()
    cdp.score(customer, model)
    took.append(1000 * (perf_counter() - start))
pd.Series(took, name="milliseconds").describe()[["min", "50%", "max"]].round(2)

# %% The golden record: each value with the source it was taken from
known = profile(cdp.online, somebody)
print(f"{known['records']} records, confidence {known['identity_confidence']:.3f}")
pd.DataFrame.from_dict(known["fields"], orient="index")

# %% The segments that the customer is in
pd.DataFrame(segments(cdp.online, somebody), columns=["segment", "entered_at"])

# %% [markdown]
# `resolve` tells who a person at the counter might be, given any of the fields; nothing is kept.

# %% Who is it? A misspelled name and a postcode
said = {name: field["value"] for name, field in known["fields"].items()}
person = {n: said[n] for n in ("given_name", "surname", "birth_date", "postcode") if n in said}
person["surname"] = person["surname"][:-1]
found = pd.DataFrame(resolve(cdp.online, person))
found.head()

# %% [markdown]
# Over HTTP it is the same, while `cdp-ml serve` runs:
#
# ```console
# curl http://127.0.0.1:3000/score -H 'Content-Type: application/json' \
#   -d '{"customer_id": "…", "model": "purchase_30d"}'
# ```
