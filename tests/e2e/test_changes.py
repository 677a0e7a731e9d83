"""What a refresh does when sources and declarations change: on the starter's handful of rows."""

import shutil

import pytest

import cdp_ml
from cdp_ml.workspace import make_workspace


@pytest.fixture(scope="module")
def refreshed(tmp_path_factory):
    """The starter workspace without models, refreshed; as of the day after its last order."""
    home = tmp_path_factory.mktemp("starter") / "my shop"
    make_workspace(home)
    configure(home, "as_of: latest", "as_of: 2026-07-01\nmodels: []")
    cdp_ml.refresh(home)
    return home


@pytest.fixture
def home(refreshed, tmp_path):
    """A copy of the refreshed workspace, to change."""
    return shutil.copytree(refreshed, tmp_path / refreshed.name)


def configure(home, old, new):
    path = home / "cdp.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def deliver(home, line):
    with (home / "data" / "orders.csv").open("a") as orders:
        orders.write(line + "\n")


def orders(home):
    return set(cdp_ml.open(home).table("transactions").to_pyarrow()["order_id"].to_pylist())


def customers(home):
    return cdp_ml.open(home).table("customers").to_pyarrow().num_rows


def test_a_row_that_arrives_while_its_source_is_read_comes_with_the_next_refresh(home, monkeypatch):
    from cdp_ml.ingest import batch

    read = batch.read_source

    def read_and_receive(name, *arguments):
        found = read(name, *arguments)
        if name == "orders":
            deliver(home, "LATE,3,mug,1,7.50,2026-05-06T10:00:00Z")
        return found

    deliver(home, "EARLY,3,mug,1,7.50,2026-05-05T10:00:00Z")
    with monkeypatch.context() as patch:
        patch.setattr(batch, "read_source", read_and_receive)
        cdp_ml.refresh(home)
    assert "orders:EARLY" in orders(home)
    cdp_ml.refresh(home)
    assert "orders:LATE" in orders(home)


def test_what_a_source_now_refuses_goes(home):
    assert "orders:A5" in orders(home)
    rule = "fields:\n      order_id: order_no"
    configure(home, rule, "refuse: [{where: \"sku = 'tray'\", reason: no trays}]\n    " + rule)
    cdp_ml.refresh(home)
    assert "orders:A5" not in orders(home)
    rejects = cdp_ml.open(home).table("rejects").to_pyarrow().to_pylist()
    assert [r["reason"] for r in rejects] == ["no trays"]


def test_what_a_removed_source_said_goes(home):
    text = (home / "cdp.yaml").read_text()
    start, end = text.index("  orders:"), text.index("segments:")
    (home / "cdp.yaml").write_text(text[:start] + text[end:])
    cdp_ml.refresh(home)
    assert orders(home) == set()
    assert customers(home) == 3


def test_a_customer_of_a_removed_source_goes(home):
    configure(home, "path: data/customers.csv", "path: data/others.csv")
    others = "id,first_name,last_name,email,phone,birth_date,updated_at\n"
    others += "9,Zoe,Zimmer,zoe@zimmer.example,,1990-01-01,2026-01-10T09:00:00Z\n"
    (home / "data" / "others.csv").write_text(others)
    configure(home, "  customers:  ", "  members:  ")
    configure(home, "identifier_type: customers", "identifier_type: members")
    cdp_ml.refresh(home)
    told = cdp_ml.open(home).run["summary"]["identity"]["metrics"]["identity"]
    assert (told["records"], told["customers"], customers(home)) == (1, 1, 1)


def test_a_correction_does_not_erase_the_past(home):
    configure(home, "as_of: 2026-07-01", "as_of: 2026-07-02")
    path = home / "data" / "customers.csv"
    path.write_text(
        path.read_text().replace("bob@baker.example,,", "bob@baker.example,020 7946 0003,")
    )
    path.write_text(path.read_text().replace("2026-01-12T09:00:00Z", "2026-06-12T09:00:00Z"))
    cdp_ml.refresh(home)
    bob = cdp_ml.open(home).table("customers").to_pyarrow().to_pylist()
    (bob,) = [c for c in bob if c["given_name"] == "bob"]
    assert bob["first_seen_at"].month == 1
    assert bob["last_seen_at"].month == 6


def test_a_merge_shows_as_of_the_run_that_finds_it(home):
    assert customers(home) == 3
    path = home / "data" / "customers.csv"
    path.write_text(
        path.read_text() + "5,Bob,Baker,bob@baker.example,,1975-11-30,2026-01-20T09:00:00Z\n"
    )
    cdp_ml.refresh(home)
    cdp = cdp_ml.open(home)
    assert (
        customers(home) == cdp.run["summary"]["identity"]["metrics"]["identity"]["customers"] == 3
    )
