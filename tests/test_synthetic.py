"""The fictional retailer: the same each time, wrong in the ways that we asked for, true beneath."""

import hashlib
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import phonenumbers
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT

from cdp_ml.config import load_settings
from cdp_ml.contracts import PERSON_FIELDS, arrow_schema
from cdp_ml.ingest.batch import Batch, read_source
from cdp_ml.synthetic import SOURCES, generate, generate_records

PEOPLE = 300
END = date(2026, 7, 1)
TEST_ACCOUNT = "test@example.com"

CSV_COLUMNS = {
    "products.csv": "sku name category price",
    "crm/customers.csv": "crm_id first_name last_name email phone birth_date street postcode city"
    " loyalty_no created_at updated_at",
    "crm/consents.csv": "crm_id purpose granted at",
    "crm/exposures.csv": "campaign_id crm_id arm at",
    "pos/members.csv": "card_no surname forename dob mobile postcode joined",
    "pos/receipts.csv": "receipt_no line card_no store time sku qty price received_at",
    "newsletter/subscribers.csv": "subscriber_id email first_name last_name signup_at status",
    "newsletter/events.csv": "event_id subscriber_id type at campaign",
}
JSON_COLUMNS = {
    "shop/accounts.jsonl": "account_id email name phone birthday address registered_at",
    "shop/order_lines.jsonl": "order_id line_no account_id ordered_at sku quantity unit_price"
    " discount",
}
PARQUET_COLUMNS = {
    "web/hits-2025.parquet": "hit_id cookie at type sku category account_id user_agent",
    "truth/records.parquet": "source source_record_id person_id",
    "truth/cookies.parquet": "cookie person_id",
    "truth/outcomes.parquet": "person_id as_of outcome probability observable happened",
    "truth/uplift.parquet": "person_id true_effect",
}
IDS = {
    "crm": ("crm/customers.csv", "crm_id"),
    "shop": ("shop/accounts.jsonl", "account_id"),
    "pos": ("pos/members.csv", "card_no"),
    "newsletter": ("newsletter/subscribers.csv", "subscriber_id"),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world")
    generate(out, people=PEOPLE, end=END)
    return out


def read(world: Path, path: str) -> pd.DataFrame:
    if path.endswith(".parquet"):
        return pd.read_parquet(world / path)
    if path.endswith(".jsonl"):
        return pd.read_json(world / path, lines=True, convert_dates=False, dtype=False)
    separator = ";" if path.startswith("pos/") else ","
    return pd.read_csv(world / path, sep=separator, dtype=str, keep_default_na=False)


def read_hits(world: Path) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(path) for path in sorted((world / "web").iterdir())])


def person_of(world: Path, source: str) -> pd.Series:
    records = read(world, "truth/records.parquet").query("source == @source")
    return records.set_index("source_record_id").person_id


def traced_orders(world: Path) -> pd.DataFrame:
    """Every order in the files that names its buyer: person_id, at."""
    web = read(world, "shop/order_lines.jsonl").query("quantity > 0")
    till = read(world, "pos/receipts.csv").query("card_no != ''")
    web_at = pd.to_datetime(web.ordered_at)
    till_at = pd.to_datetime(till.time, format="%d/%m/%Y %H:%M", utc=True)
    return pd.concat([
        pd.DataFrame({"person_id": web.account_id.map(person_of(world, "shop")), "at": web_at}),
        pd.DataFrame({"person_id": till.card_no.map(person_of(world, "pos")), "at": till_at}),
    ])  # fmt: skip


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


# ---- the same arguments, the same bytes


def test_the_same_seed_gives_the_same_bytes(world: Path, tmp_path: Path) -> None:
    generate(tmp_path, people=PEOPLE, end=END)
    assert digests(tmp_path) == digests(world)


def test_another_seed_gives_another_world(world: Path, tmp_path: Path) -> None:
    generate(tmp_path, people=PEOPLE, seed=8, end=END)
    here, there = digests(tmp_path), digests(world)
    assert here.keys() == there.keys()
    assert all(here[path] != there[path] for path in here)


@pytest.mark.parametrize("end", [date(2024, 3, 31), date(2025, 12, 15)])
def test_the_history_may_end_on_any_day(tmp_path: Path, end: date) -> None:
    generate(tmp_path, people=50, end=end)
    assert traced_orders(tmp_path)["at"].max() < pd.Timestamp(end, tz="UTC")


@pytest.mark.parametrize("people", [1, 2, 10])
def test_a_world_may_be_tiny(tmp_path: Path, people: int) -> None:
    generate(tmp_path, people=people)
    assert len(read(tmp_path, "truth/persons.parquet")) == people


def test_the_rows_are_counted(tmp_path: Path) -> None:
    rows = generate(tmp_path, people=50)
    assert set(rows) == set(digests(tmp_path))
    assert rows == {path: len(read(tmp_path, path)) for path in rows}


# ---- each silo's schema


@pytest.mark.parametrize(("path", "columns"), (CSV_COLUMNS | JSON_COLUMNS).items())
def test_text_files_have_their_columns(world: Path, path: str, columns: str) -> None:
    assert list(read(world, path)) == columns.split()


@pytest.mark.parametrize(("path", "columns"), PARQUET_COLUMNS.items())
def test_parquet_files_have_their_columns(world: Path, path: str, columns: str) -> None:
    assert pq.read_schema(world / path).names == columns.split()


def test_hits_carry_utc_microseconds(world: Path) -> None:
    assert str(pq.read_schema(world / "web/hits-2025.parquet").field("at").type) == (
        "timestamp[us, tz=UTC]"
    )


def test_phones_are_british(world: Path) -> None:
    customers = read(world, "crm/customers.csv").query("phone != '' and email != @TEST_ACCOUNT")
    parsed = [phonenumbers.parse(phone, "GB") for phone in customers.phone]
    assert all(phonenumbers.is_valid_number(number) for number in parsed)


# ---- the truth covers what the silos hold


@pytest.mark.parametrize("source", IDS)
def test_every_record_has_one_true_person(world: Path, source: str) -> None:
    path, key = IDS[source]
    truth = person_of(world, source)
    assert truth.index.is_unique
    assert set(read(world, path)[key]) == set(truth.index)


def test_only_test_accounts_have_nobody_behind_them(world: Path) -> None:
    accounts = read(world, "shop/accounts.jsonl")
    nobody = accounts.account_id.map(person_of(world, "shop")).isna()
    assert (nobody == (accounts.email == TEST_ACCOUNT)).all()


def test_every_person_is_in_a_silo(world: Path) -> None:
    known = read(world, "truth/records.parquet").person_id.dropna()
    assert set(known) == set(range(PEOPLE))


def test_every_cookie_but_a_bot_s_has_a_person(world: Path) -> None:
    hits, known = read_hits(world), set(read(world, "truth/cookies.parquet").cookie)
    assert (hits.cookie.isin(known) == ~hits.user_agent.str.contains("bot")).all()


def test_logged_in_hits_name_the_cookie_s_person(world: Path) -> None:
    hits = read_hits(world).dropna(subset="account_id")
    cookies = read(world, "truth/cookies.parquet")
    pairs = set(zip(cookies.cookie, cookies.person_id, strict=True))
    people = hits.account_id.map(person_of(world, "shop"))
    assert set(zip(hits.cookie, people, strict=True)) <= pairs


# ---- what was and what was likely


def test_happened_agrees_with_the_orders_in_the_files(world: Path) -> None:
    orders = traced_orders(world)
    for (as_of, outcome), group in read(world, "truth/outcomes.parquet").groupby(
        ["as_of", "outcome"]
    ):
        horizon = pd.Timedelta(days=90 if outcome == "churn_90d" else 30)
        inside = (orders["at"] >= as_of) & (orders["at"] < as_of + horizon)
        bought = group.person_id.isin(orders.person_id[inside])
        expected = ~bought if outcome == "churn_90d" else bought
        assert (group.happened == expected).all(), (as_of, outcome)


def test_outcomes_are_asked_monthly_and_churn_only_when_it_can_be_known(world: Path) -> None:
    outcomes = read(world, "truth/outcomes.parquet")
    before_end = (pd.Timestamp(END, tz="UTC") - outcomes.as_of).dt.days
    asked = before_end.groupby(outcomes.outcome).unique().map(sorted).to_dict()
    assert asked["purchase_30d"] == [30 * k for k in range(1, 15)]
    assert asked["churn_90d"] == [30 * k for k in range(3, 15)]


@pytest.mark.parametrize(("outcome", "step"), [("purchase_30d", 1), ("churn_90d", 3)])
def test_probabilities_are_calibrated(tmp_path: Path, outcome: str, step: int) -> None:
    generate(tmp_path, people=2_000)
    outcomes = read(tmp_path, "truth/outcomes.parquet").query("outcome == @outcome")
    # Windows that do not overlap, so that the errors are independent given the state before.
    outcomes = outcomes[outcomes.as_of.isin(sorted(outcomes.as_of.unique())[::step])]
    low_to_high = outcomes.groupby(np.round(outcomes.probability, 1))
    for _, group in low_to_high:
        expected = group.probability.sum()
        deviation = np.sqrt((group.probability * (1 - group.probability)).sum())
        assert abs(group.happened.sum() - expected) <= 4 * deviation + 1e-9


# ---- the campaign


def test_the_campaign_is_randomized(world: Path) -> None:
    exposures = read(world, "crm/exposures.csv")
    share = (exposures.arm == "treatment").mean()
    traits = read(world, "truth/persons.parquet").query("arm >= 0")
    assert set(exposures["at"]) == {"2026-05-02T00:00:00Z"}
    assert exposures.crm_id.is_unique
    assert share == pytest.approx(0.5, abs=0.01)
    for trait in ("discount_sensitivity", "engagement", "basket"):
        means = traits.groupby("arm")[trait].agg(["mean", "var", "size"])
        error = np.sqrt((means["var"] / means["size"]).sum())
        assert abs(means["mean"].diff().iloc[-1]) < 4 * error


def test_the_campaign_helps_many_and_harms_some(world: Path) -> None:
    effect = read(world, "truth/uplift.parquet").true_effect
    assert effect.mean() > 0.01
    assert (effect < 0).any()


def test_the_campaign_s_effect_shows_in_the_orders(tmp_path: Path) -> None:
    generate(tmp_path, people=5_000)
    outcomes = read(tmp_path, "truth/outcomes.parquet")
    bought = outcomes.query("outcome == 'purchase_30d'")
    bought = bought[bought.as_of == pd.Timestamp("2026-05-02", tz="UTC")]
    arms = read(tmp_path, "truth/persons.parquet")[["person_id", "arm"]]
    bought = bought.merge(arms).merge(read(tmp_path, "truth/uplift.parquet"))
    bought = bought.query("arm >= 0")
    rates = bought.groupby("arm").happened.agg(["mean", "size"])
    error = np.sqrt((rates["mean"] * (1 - rates["mean"]) / rates["size"]).sum())
    assert rates["mean"].diff().iloc[-1] == pytest.approx(bought.true_effect.mean(), abs=4 * error)


def test_who_buys_a_main_product_soon_buys_its_companion(tmp_path: Path) -> None:
    generate(tmp_path, people=2_000)
    lines = read(tmp_path, "shop/order_lines.jsonl").query("quantity > 0 and line_no == 1")
    lines = lines.merge(read(tmp_path, "products.csv"), on="sku")
    lines = lines.sort_values(["account_id", "ordered_at"])
    previous = lines.category.shift().where(lines.account_id == lines.account_id.shift())
    covers = lines.category == "cushion covers"
    assert covers[previous == "cushions"].mean() > 1.5 * covers.mean()


# ---- the errors that were asked for


def test_people_are_misspelled_and_renamed(world: Path) -> None:
    customers = read(world, "crm/customers.csv")
    customers["person_id"] = customers.crm_id.map(person_of(world, "crm"))
    known = customers.merge(read(world, "truth/persons.parquet"), on="person_id")
    assert known.first_name.str.isupper().any()
    assert known.first_name.str.islower().any()
    assert ((known.first_name == known["last"]) & (known.last_name == known["first"])).any()
    different = known.first_name.str.lower() != known["first"].str.lower()
    close = known.first_name.str[:1].str.lower() == known["first"].str[:1].str.lower()
    assert (different & close).any()


def test_nicknames_occur(world: Path) -> None:
    from cdp_ml.synthetic import NICKNAMES

    subscribers = read(world, "newsletter/subscribers.csv")
    assert subscribers.first_name.isin(NICKNAMES.values()).any()


def test_fields_are_missing(world: Path) -> None:
    assert (read(world, "crm/customers.csv")[["email", "phone", "birth_date"]] == "").any().all()
    assert (
        (read(world, "newsletter/subscribers.csv")[["first_name", "last_name"]] == "").any().all()
    )
    assert read(world, "shop/accounts.jsonl")[["phone", "birthday"]].isna().any().all()


def test_birth_dates_are_implausible_impossible_or_turned_around(world: Path) -> None:
    customers = read(world, "crm/customers.csv")
    customers["person_id"] = customers.crm_id.map(person_of(world, "crm"))
    known = customers.merge(read(world, "truth/persons.parquet"), on="person_id")
    stated, born = known.birth_date, known.born.astype(str)
    turned = born.str[:4] + "-" + born.str[8:] + "-" + born.str[5:7]
    assert (stated == "1900-01-01").any()
    assert stated.str.startswith("2031").any()
    assert ((stated == turned) & (stated != born)).any()


def test_phones_come_in_several_formats(world: Path) -> None:
    phones = read(world, "shop/accounts.jsonl").phone.dropna()
    for pattern in (r"^07\d{9}$", r"^\+44 \d{4} ", r"^0044", r"\(0\)"):
        assert phones.str.contains(pattern).any(), pattern


def test_relatives_share_and_strangers_inherit(tmp_path: Path) -> None:
    generate(tmp_path, people=2_000)
    accounts = read(tmp_path, "shop/accounts.jsonl")
    accounts["person_id"] = accounts.account_id.map(person_of(tmp_path, "shop"))
    homes = read(tmp_path, "truth/persons.parquet")[["person_id", "household_id"]]
    known = accounts.merge(homes, on="person_id")
    known["digits"] = known.phone.str.replace(r"\D", "", regex=True).str[-9:]
    shared_emails = known.groupby("email").person_id.nunique()
    assert (shared_emails > 1).any()
    phones = known.dropna(subset="digits").groupby("digits")
    assert (phones.person_id.nunique() > phones.household_id.nunique()).any(), "family landline"
    assert (phones.household_id.nunique() > 1).any(), "recycled number"


def test_some_records_are_outdated(tmp_path: Path) -> None:
    generate(tmp_path, people=1_000)
    customers = read(tmp_path, "crm/customers.csv").drop_duplicates("crm_id")
    customers["person_id"] = customers.crm_id.map(person_of(tmp_path, "crm"))
    members = read(tmp_path, "pos/members.csv")
    members["person_id"] = members.card_no.map(person_of(tmp_path, "pos"))
    both = customers.dropna(subset="person_id").merge(members, on="person_id")
    moved = (both.postcode_x != both.postcode_y) & (both.postcode_x != "") & (both.postcode_y != "")
    renamed = both.last_name.str.lower().str[0] != both.surname.str.lower().str[0]
    assert 0 < moved.mean() < 0.15
    assert 0 < renamed.mean() < 0.1


@pytest.mark.parametrize("source", IDS)
def test_some_people_are_twice_in_a_silo(world: Path, source: str) -> None:
    assert person_of(world, source).dropna().duplicated().any()


def test_the_crm_corrects_records(world: Path) -> None:
    versions = read(world, "crm/customers.csv").groupby("crm_id").updated_at
    assert (versions.size() > 1).any()
    assert (versions.nunique() == versions.size()).all()


def test_card_numbers_in_the_crm_are_the_right_person_s(world: Path) -> None:
    customers = read(world, "crm/customers.csv").query("loyalty_no != ''")
    by_card = customers.loyalty_no.map(person_of(world, "pos"))
    assert (by_card == customers.crm_id.map(person_of(world, "crm"))).all()


@pytest.mark.parametrize(
    "path", ["pos/receipts.csv", "newsletter/events.csv", "shop/order_lines.jsonl"]
)
def test_rows_are_delivered_twice(world: Path, path: str) -> None:
    assert read(world, path).duplicated().any()


def test_hits_are_delivered_twice(world: Path) -> None:
    hits = read_hits(world)
    assert hits.duplicated().any()
    assert not hits.drop_duplicates().hit_id.duplicated().any()


def test_receipts_are_late_anonymous_negative_or_from_the_future(world: Path) -> None:
    receipts = read(world, "pos/receipts.csv")
    at = pd.to_datetime(receipts.time, format="%d/%m/%Y %H:%M", utc=True)
    late = pd.to_datetime(receipts.received_at) - at > pd.Timedelta(days=1)
    assert 0.01 < late.mean() < 0.06
    assert (receipts.card_no == "").any()
    assert (receipts.price.astype(float) < 0).any()
    assert (at.dt.year == 2062).any()


def test_events_come_from_the_future(world: Path) -> None:
    assert read(world, "newsletter/events.csv")["at"].str.startswith("2062").any()
    assert (read_hits(world)["at"].dt.year == 2062).any()


def test_returns_are_lines_of_negative_quantity(world: Path) -> None:
    lines = read(world, "shop/order_lines.jsonl")
    returned = lines.order_id.str.startswith("R-")
    assert returned.any()
    assert (returned == (lines.quantity < 0)).all()
    assert (lines.unit_price > 0).all()
    assert lines.discount.between(0, 0.5).all()


def test_carts_precede_web_orders_and_some_are_abandoned(world: Path) -> None:
    hits = read_hits(world)
    kinds = hits.type.value_counts()
    assert kinds.cart_add > kinds.checkout > 0
    assert hits.account_id.notna().any()


def test_few_bots_make_few_of_the_hits(tmp_path: Path) -> None:
    generate(tmp_path, people=2_000)
    hits = read_hits(tmp_path)
    bots = hits[hits.user_agent.str.contains("bot")]
    assert 0.01 < len(bots) / len(hits) < 0.04
    assert bots.cookie.nunique() < 10


# ---- the records alone


KEY = ["source", "source_record_id"]


@pytest.fixture(scope="module")
def alone() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Records, identifiers and truth, without any files."""
    return tuple(table.to_pandas() for table in generate_records(PEOPLE, end=END))


@pytest.fixture
def ingested(world: Path, tmp_path: Path, con) -> list[Batch]:
    """What the ingestion makes of the files, with the demo's cdp.yaml."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "demo").symlink_to(world)
    sources, known_at = load_settings(ROOT).sources, datetime(2026, 7, 1, tzinfo=UTC)
    return [read_source(s, sources[s], tmp_path, con, known_at) for s in SOURCES]


def real(world: Path, table: pd.DataFrame) -> pd.DataFrame:
    """The rows about people: the point of sale's test accounts have no e-mail to refuse them by."""
    known = read(world, "truth/records.parquet").dropna()[KEY]
    return table.merge(known).sort_values(KEY, ignore_index=True)


def test_the_records_are_those_that_the_ingestion_keeps(world, alone, ingested) -> None:
    kept = pa.concat_tables(batch.rows for batch in ingested)
    columns = [*KEY, *PERSON_FIELDS]
    expected, found = real(world, kept.to_pandas()), alone[0].sort_values(KEY, ignore_index=True)
    assert generate_records(1)[0].schema.equals(kept.schema)
    pd.testing.assert_frame_equal(found[columns], expected[columns])
    dated = expected.source != "pos"  # whose file has the day alone
    times = ["event_timestamp", "ingested_at"]
    pd.testing.assert_frame_equal(found.loc[dated, times], expected.loc[dated, times])


def test_the_identifiers_are_those_that_the_ingestion_finds(world, alone, ingested) -> None:
    found = pa.concat_tables(batch.identifiers for batch in ingested)
    columns = ["identifier_type", "identifier", *KEY]
    expected = real(world, found.to_pandas())[columns]
    assert generate_records(1)[1].schema.equals(arrow_schema("identifiers"))
    assert sorted(expected.values.tolist()) == sorted(alone[1][columns].values.tolist())


def test_the_records_truth_is_that_of_the_world(world, alone) -> None:
    expected = read(world, "truth/records.parquet").dropna().astype({"person_id": int})
    found = alone[2].sort_values(KEY, ignore_index=True)
    assert alone[2].person_id.map(type).eq(str).all()
    pd.testing.assert_frame_equal(
        found, expected.astype({"person_id": str}).sort_values(KEY, ignore_index=True)
    )


def test_records_alone_follow_the_seed_and_may_be_few() -> None:
    few = generate_records(2)
    assert all(again.equals(table) for again, table in zip(generate_records(2), few, strict=True))
    assert not generate_records(2, seed=8)[0].equals(few[0])
