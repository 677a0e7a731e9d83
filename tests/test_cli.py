"""The command line as a person meets it: wrong input, odd workspaces, and what it prints.

Whatever a person can mend is one line on stderr and exit code 1; wrong usage is exit code 2. A
refresh that fails leaves what was published as it was.
"""

import contextlib
import fcntl
import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass

import pyarrow as pa
import pytest
from conftest import ROOT

import cdp_ml
from cdp_ml import cli
from cdp_ml.journal import Journal
from cdp_ml.lake import Lake, last_run
from cdp_ml.steps import people_schema
from cdp_ml.workspace import people_at

HEAVY = ("pandas", "pyarrow", "duckdb", "ibis", "deltalake", "mlflow", "feast", "bentoml",
         "splink", "lightgbm", "sklearn")  # fmt: skip
PERSONAL = ("ann", "anne", "archer", "bob", "baker", "carol", "carter", "zoe", "zulu", "7946",
            "1980-05-01", "1975-11-30")  # fmt: skip
"""What the starter's customers, and those whom a test adds, would recognize as theirs."""


@dataclass(frozen=True)
class Answer:
    code: int | str | None
    out: str
    err: str


def cdp(*arguments):
    """Run the command line in this process: `cdp-ml ARGUMENTS`."""
    out, err = io.StringIO(), io.StringIO()
    former, sys.argv = sys.argv, ["cdp-ml", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.argv = former
    return Answer(code, out.getvalue(), err.getvalue())


def assert_refused(answer, expected):
    """One line on stderr that says what is wrong, and nothing of anybody's."""
    assert answer.code == 1, answer
    assert answer.out == ""
    assert re.fullmatch(r"error: [^\n]+\n", answer.err), answer.err
    assert re.search(expected, answer.err), answer.err
    assert "Traceback" not in answer.err
    words = set(re.findall(r"[\w-]+", answer.err.lower()))
    assert not words & set(PERSONAL), answer.err


def strict_json(text):
    """Parse JSON as its standard has it, without NaN and Infinity."""

    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


# ---- how a test changes a workspace ----


def write(path, content):
    def change(home):
        target = home / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def edit(path, old, new):
    def change(home):
        text = (home / path).read_text()
        assert old in text
        write(path, text.replace(old, new, 1))(home)

    return change


def append(path, content):
    more = content if isinstance(content, bytes) else content.encode()
    return lambda home: write(path, (home / path).read_bytes() + more)(home)


def remove(path):
    return lambda home: (home / path).unlink()


def orders_with(lines):
    """Add lines to the declaration of the source 'orders', which then begins on line 19."""
    return edit("cdp.yaml", "    path: data/orders.csv", f"    path: data/orders.csv\n    {lines}")


def rule(condition):
    """Let the segment, whose condition is on line 33, have another one."""
    return edit("cdp.yaml", "days_since_last_order < 90", condition)


def own(folder, file, old, new):
    """Give the workspace a folder of its own in place of the shipped one, and edit a file of it."""

    def change(home):
        shutil.copytree(ROOT / folder, home / folder, ignore=shutil.ignore_patterns("__pycache__"))
        edit(f"{folder}/{file}", old, new)(home)

    return change


def both(*changes):
    return lambda home: [change(home) for change in changes]


def published(home):
    return Lake.published(home / ".cdp" / "lake")


def seen(home):
    """What readers see: the published run, and the rows of every table that it names."""
    lake = published(home)
    rows = {name: lake.arrow(name).to_pylist() for name in lake.versions if lake.has(name)}
    return last_run(lake.root), rows


def restore(home, origin):
    """Put the workspace's own files back as they are in `origin`."""
    for path in home.iterdir():
        if path.name != ".cdp":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(origin, home, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".cdp"))


# ---- workspaces ----


@pytest.fixture(scope="module")
def refreshed(tmp_path_factory):
    """The workspace that `cdp-ml init` makes, and what its first refresh answered."""
    home = tmp_path_factory.mktemp("starter") / "home"
    assert cdp("init", home).code == 0
    return home, cdp("refresh", "-w", home)


@pytest.fixture(scope="module")
def starter(refreshed):
    """The refreshed starter workspace; tests that change it work on a copy."""
    return refreshed[0]


@pytest.fixture
def home(starter, tmp_path):
    """A copy of the refreshed starter workspace."""
    shutil.copytree(starter, tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def fresh(tmp_path):
    """A starter workspace in which nothing has been published."""
    assert cdp("init", tmp_path / "home").code == 0
    return tmp_path / "home"


# ---- wrong input ----

SOURCES = {
    "missing file": (
        remove("data/orders.csv"),
        r"source 'orders': no file .*orders\.csv; .*correct sources\.orders\.path",
    ),
    "ragged row": (
        append("data/customers.csv", "5,Zoe,Zulu,zoe@zulu.example\n"),
        r"data/customers\.csv:6: has 4 fields where the header has 7; mend the line, or declare",
    ),
    "empty file": (
        write("data/orders.csv", b""),
        r"data/orders\.csv: is empty; it needs a header line",
    ),
    "header alone": (
        write("data/orders.csv", "order_no,customer_id,sku,quantity,price,ordered_at\n"),
        r"data/orders\.csv has no rows; if that is right, take the source out of cdp\.yaml",
    ),
    "corrupt Parquet file": (
        both(
            edit("cdp.yaml", "data/orders.csv", "data/orders.parquet"),
            write("data/orders.parquet", b"PAR1 not really PAR1"),
        ),
        r"data/orders\.parquet: not a readable Parquet file: .*have it delivered again",
    ),
    "not UTF-8": (
        append("data/customers.csv", b"5,Zo\xeb,Zulu,zoe@zulu.example,,,2026-01-01\n"),
        r"data/customers\.csv:6: byte 0xeb is not utf-8; declare .*encoding: cp1252",
    ),
    "not JSON lines": (
        both(
            edit("cdp.yaml", "data/orders.csv", "data/orders.jsonl"),
            write("data/orders.jsonl", '{"order_no": "A1"}\n{"order_no": \n'),
        ),
        r"data/orders\.jsonl:2: not a JSON object; .*mend the line, or declare",
    ),
    "unclosed quote": (
        append("data/orders.csv", 'A6,1,"mug,1,7.50,2026-05-01\n'),
        r"data/orders\.csv:7: .*mend the line",
    ),
    "folder for a file": (
        edit("cdp.yaml", "data/orders.csv", "data"),
        r"data is a folder; name its files, such as data/\*\.csv",
    ),
}  # fmt: skip

CONFIGURATION = {
    "unknown key": (append("cdp.yaml", "segmnts: {}\n"), r"cdp\.yaml:35: segmnts: .*'segments'"),
    "unknown key of a source": (orders_with("pth: x"), r"cdp\.yaml:22: .*pth: .*'path'"),
    "key twice": (append("cdp.yaml", "segments: {}\n"), r"cdp\.yaml:35: 'segments' stands twice"),
    "no YAML": (append("cdp.yaml", "  [\n"), r"cdp\.yaml:36: not valid YAML"),
    "not UTF-8": (append("cdp.yaml", b"# caf\xe9\n"), r"cdp\.yaml:35: not UTF-8 text; save it"),
    "empty": (write("cdp.yaml", ""), r"cdp\.yaml: must hold 'key: value' lines, holds nothing"),
    "no file": (remove("cdp.yaml"), r"cdp\.yaml: no such file; 'cdp-ml init DIR'"),
    "no sources": (write("cdp.yaml", "sources: {}\n"), r"cdp\.yaml:1: sources: name at least one"),
    "unknown kind": (
        edit("cdp.yaml", "kind: transactions", "kind: transaction"),
        r"cdp\.yaml:20: sources\.orders\.kind: .*'transactions'",
    ),
    "unknown region": (edit("cdp.yaml", "GB", "UK"), r"cdp\.yaml:3: region: .*such as GB"),
    "no instant": (edit("cdp.yaml", "latest", "today"), r"cdp\.yaml:4: as_of: write 'latest'"),
    "long delimiter": (orders_with("delimiter: '||'"), r"cdp\.yaml:22: sources\.orders\.delimiter"),
    "unknown time zone": (
        orders_with("timezone: Mars/Olympus"),
        r"cdp\.yaml:22: .*no time zone 'Mars/Olympus'; .*Africa/Abidjan, .* and \d+ more",
    ),
    "unknown field of the source": (
        edit("cdp.yaml", "quantity: quantity", "quantity: quantty"),
        r"cdp\.yaml:27: sources\.orders\.fields\.quantity: .*did you mean 'quantity'",
    ),
    "unknown canonical field": (
        edit("cdp.yaml", "quantity: quantity", "quantty: quantity"),
        r"cdp\.yaml:23: sources\.orders\.fields: no canonical field 'quantty' .*'quantity'",
    ),
    "refuse by an unknown field": (
        orders_with("refuse: [{where: 'quantty = 0', reason: none}]"),
        r"cdp\.yaml:22: sources\.orders\.refuse\.0: no column 'quantty'; did you mean 'quantity'",
    ),
    "refuse by what is not SQL": (
        orders_with("refuse: [{where: 'quantity ==== 0', reason: none}]"),
        r"cdp\.yaml:22: sources\.orders\.refuse\.0: not an SQL condition: quantity ==== 0",
    ),
    "where of what cannot be converted": (
        edit(
            "cdp.yaml",
            "    path: data/customers.csv",
            "    where: CAST(email AS INT) = 1\n    path: data/customers.csv",
        ),
        r"sources\.customers: a condition .* cannot convert some rows; write TRY_CAST",
    ),
    "consents of nobody": (
        both(
            edit("cdp.yaml", "kind: transactions", "kind: consents"),
            edit("cdp.yaml", "identifier_type: customers", "identifier_type: custmers"),
        ),
        r"cdp\.yaml:22: .*no people source 'custmers'; did you mean 'customers'",
    ),
    "login to no source": (
        orders_with("login: {field: customer_id, source: crm}"),
        r"cdp\.yaml:22: .*no people source 'crm'; valid names: customers",
    ),
    "survivorship of no field": (
        append("cdp.yaml", "profiles: {emial: {rule: latest}}\n"),
        r"cdp\.yaml:35: profiles\.emial: .*did you mean 'email'",
    ),
    "trust in no source": (
        append("cdp.yaml", "profiles: {email: {rule: trust, trust: [crm]}}\n"),
        r"cdp\.yaml:35: .*email\.trust: no people source 'crm'",
    ),
    "memory": (
        both(append("cdp.yaml", "engine: {memory_limit: lots}\n"), rule("orders_30d > 1")),
        r"cdp\.yaml:35: engine\.memory_limit: not an amount of memory: 'lots'; write such as 2GB",
    ),
    "nowhere to write": (
        append("cdp.yaml", "data_dir: cdp.yaml\n"),
        r"cdp\.yaml:35: data_dir: cannot make the folder .*choose another one",
    ),
}

SPECIFICATIONS = {
    "segment by an unknown trait": (
        rule("days_since_last_ordr < 90"),
        r"cdp\.yaml:33: segments\.recent_buyers\.where: no column 'days_since_last_ordr'; "
        r"did you mean 'days_since_last_order'",
    ),
    "segment by what is not SQL": (rule("orders_30d <"), r"cdp\.yaml:33: .*not an SQL condition"),
    "segment by an unknown function": (rule("summe(orders_30d) > 1"), r"cdp\.yaml:33: .*summe"),
    "segment by an aggregate": (rule("sum(orders_30d) > 1"), r"cdp\.yaml:33: .*aggregates"),
    "segment by values that are no condition": (
        rule("email"),
        r"cdp\.yaml:33: segments\.recent_buyers\.where: cannot be evaluated .*write a comparison",
    ),
    "segment of a model's name": (
        edit("cdp.yaml", "recent_buyers:", "at_risk:"),
        r"models/churn_90d\.yaml:\d+: segments\.at_risk: cdp\.yaml has a segment of this name too",
    ),
    "unknown model": (
        append("cdp.yaml", "models: [purchase_30]\n"),
        r"cdp\.yaml:35: models: no 'purchase_30' .*did you mean 'purchase_30d'",
    ),
    "model with an unknown key": (
        own("models", "churn_90d.yaml", "cadence_days", "cadence_dys"),
        r"models/churn_90d\.yaml:\d+: cadence_dys: unknown key; did you mean 'cadence_days'",
    ),
    "model that is no YAML": (
        own("models", "churn_90d.yaml", "name:", "  [name:"),
        r"models/churn_90d\.yaml:\d+: not valid YAML",
    ),
    "model by another name": (
        own("models", "churn_90d.yaml", "name: churn_90d", "name: churn"),
        r"models/churn_90d\.yaml: name: 'churn', must be the file's: 'churn_90d'",
    ),
    "model from unknown features": (
        own("models", "churn_90d.yaml", "features: churn_90d", "features: churn_90"),
        r"models/churn_90d\.yaml:\d+: features: no 'churn_90'; .*'churn_90d'",
    ),
    "model from an unknown input": (
        own("models", "clusters.yaml", "[days_since_last_order,", "[days_since_last_ordr,"),
        r"models/clusters\.yaml:\d+: inputs: .*did you mean 'days_since_last_order'",
    ),
    "model for an unknown population": (
        own("models", "churn_90d.yaml", "days_since_last_order < ", "days_since_last_ordr < "),
        r"models/churn_90d\.yaml:\d+: population: .*did you mean 'days_since_last_order'",
    ),
    "model with an unknown parameter": (
        own("models", "churn_90d.yaml", "cadence_days", "estimator: {num_leafs: 3}\ncadence_days"),
        r"models/churn_90d\.yaml:\d+: estimator: .*'num_leafs'; did you mean 'num_leaves'",
    ),
    "share above 1": (
        own("models", "churn_90d.yaml", "above: 0.6", "top: 6"),
        r"models/churn_90d\.yaml:\d+: segments\.at_risk\.top: .*less than or equal to 1",
    ),
    "comparison of an unknown kind": (
        own("models", "identity.yaml", "kind: email", "kind: emial"),
        r"models/identity\.yaml:\d+: comparisons: no kind 'emial'; did you mean 'email'",
    ),
    "comparison of an unknown field": (
        own("models", "identity.yaml", "field: email", "field: emial"),
        r"models/identity\.yaml:\d+: comparisons: .*'emial'; did you mean 'email'",
    ),
    "blocking by an unknown field": (
        own("models", "identity.yaml", "  - given_name, surname", "  - given_nme, surname"),
        r"models/identity\.yaml: rule 'given_nme, surname': .*did you mean 'given_name'",
    ),
    "models without identity": (
        both(own("models", "identity.yaml", "seed: 1", "seed: 2"), remove("models/identity.yaml")),
        r"models/identity\.yaml: no such file; copy the one that ships with cdp-ml: ",
    ),
    "features that do not import": (
        own("features", "views.py", "from feast import", "from feest import"),
        r"features/views\.py:\d+: cannot be imported: .*feest",
    ),
}  # fmt: skip

WRONG = {
    f"{group}: {name}": case
    for group, cases in (
        ("source", SOURCES), ("configuration", CONFIGURATION), ("specification", SPECIFICATIONS))
    for name, case in cases.items()
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_line_changes_nothing_and_can_be_mended(name, starter, home):
    change, expected = WRONG[name]
    before = seen(home)
    change(home)
    assert_refused(cdp("refresh", "-w", home), expected)
    assert seen(home) == before
    restore(home, starter)
    mended = cdp("refresh", "-w", home)
    assert (mended.code, mended.err) == (0, "")


def test_what_was_written_before_a_step_failed_is_not_visible_until_the_next_refresh(home):
    append("data/orders.csv", "A6,1,mug,1,7.50,2026-05-01T10:00:00Z\n")(home)
    # Only some customer's e-mail shows that this is no condition: no check beforehand does.
    rule("email")(home)
    assert_refused(cdp("refresh", "-w", home), "cannot be evaluated for some rows")
    assert published(home).arrow("transactions").num_rows == 5
    edit("cdp.yaml", "where: email", "where: orders_30d >= 1")(home)
    assert cdp("refresh", "-w", home).code == 0
    assert published(home).arrow("transactions").num_rows == 6


def test_a_first_refresh_that_fails_leaves_nothing_and_the_next_one_succeeds(fresh):
    append("data/orders.csv", "A6,1\n")(fresh)
    assert_refused(cdp("refresh", "-w", fresh), r"data/orders\.csv:7")
    assert not (fresh / ".cdp" / "lake").exists()
    assert_refused(cdp("status", "-w", fresh), "nothing published yet; run 'cdp-ml refresh'")
    edit("data/orders.csv", "A6,1\n", "A6,1,mug,1,7.50,2026-05-01T10:00:00Z\n")(fresh)
    assert cdp("refresh", "-w", fresh).code == 0
    assert published(fresh).arrow("transactions").num_rows == 6


def test_a_damaged_journal_is_as_none_so_that_every_step_runs_again(tmp_path):
    for damage in ('{"run": ', "[]", '{"ran": {}}'):
        (tmp_path / "journal.json").write_text(damage)
        journal = Journal.load(tmp_path / "journal.json", {"customers": 3})
        assert (journal.run, journal.versions, journal.steps) == ({}, {"customers": 3}, {})


def test_one_refresh_at_a_time(home):
    before = seen(home)
    with (home / ".cdp" / "refresh.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert_refused(cdp("refresh", "-w", home), "another refresh is at work on .*wait until")
    assert seen(home) == before
    assert cdp("refresh", "-w", home).code == 0


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("CDP_REGION", "Britain", "environment variable CDP_REGION: .*such as GB"),
        ("CDP_ENGINE__THREADS", "zero", "environment variable CDP_ENGINE__THREADS: .*integer"),
        ("CDP_ENGINE__THRADS", "2", "CDP_ENGINE__THRADS: .*did you mean 'threads'"),
        ("CDP_ENGINE", "{2", "environment: .*engine.*must be JSON"),
    ],
)
def test_a_wrong_variable_is_named(variable, value, expected, starter, monkeypatch):
    monkeypatch.setenv(variable, value)
    assert_refused(cdp("refresh", "-w", starter), expected)


def test_a_password_in_a_database_url_is_never_shown(home):
    edit("cdp.yaml", "path: data/orders.csv", "path: nosql://me:s3cret@host/db\n    table: o")(home)
    answer = cdp("refresh", "-w", home)
    assert_refused(answer, "not a usable database URL")
    assert "s3cret" not in answer.err


# ---- the other commands ----


@pytest.mark.parametrize(
    "command", [("status",), ("evaluate",), ("ui",), ("serve",), ("serve", "--check")]
)
def test_what_needs_a_published_state_says_how_to_get_one(command, fresh):
    assert_refused(cdp(*command, "-w", fresh), "nothing published yet; run 'cdp-ml refresh'")


@pytest.mark.parametrize("command", ["refresh", "status", "evaluate", "ui", "serve"])
@pytest.mark.parametrize("place", ["nowhere/at/all", "file"])
def test_a_workspace_that_is_not_there(command, place, tmp_path):
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    answer = cdp(command, "-w", tmp_path / place)
    assert_refused(answer, r"cdp\.yaml: no such file; 'cdp-ml init DIR' makes a workspace")
    assert sorted(tmp_path.rglob("*")) == before


def test_evaluation_needs_a_truth(starter):
    assert_refused(cdp("evaluate", "-w", starter), r"no 'truth'; .*truth: \{records: PATH\}")


def test_evaluation_against_a_truth(home):
    append("cdp.yaml", "truth: {records: truth.csv, source: customers}\n")(home)
    assert_refused(cdp("evaluate", "-w", home), "truth: no file .*truth.csv")
    write("truth.csv", "source_record_id,person_id\n1,a\n2,a\n3,b\n4,c\n")(home)
    found = strict_json(cdp("evaluate", "-w", home, "--json").out)
    assert found["identity"]["precision"] == 1.0
    assert "precision" in cdp("evaluate", "-w", home).out


def test_an_unknown_table_names_the_nearest():
    assert_refused(cdp("tables", "nope"), "no table 'nope'; valid names: .*customers")
    assert_refused(cdp("tables", "customer"), "did you mean 'customers'")
    assert "customer_id (key)" in cdp("tables", "customers").out


def test_init_overwrites_nothing(fresh, tmp_path):
    assert_refused(cdp("init", fresh), "cdp.yaml exists already; choose another folder")
    assert_refused(cdp("init", fresh / "cdp.yaml"), "is not a folder; choose another one")
    assert_refused(cdp("demo-data", "--people", 100, "--out", fresh / "cdp.yaml"), "File exists")


def test_json_for_machines(starter):
    outcome = strict_json(cdp("refresh", "-w", starter, "--json").out)
    assert outcome["published"] is False
    assert outcome["reports"]["ingest"]["sources"]["orders"]["read"] == 5
    run = strict_json(cdp("status", "-w", starter, "--json").out)
    assert run["run_id"] == outcome["run_id"]
    assert run["versions"]["customers"] >= 0


def test_the_workspace_comes_from_the_environment(starter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_refused(cdp("status"), "no such file; 'cdp-ml init DIR'")
    monkeypatch.setenv("CDP_WORKSPACE", str(starter))
    assert "Up to date" in cdp("refresh").out
    assert cdp("status").out == cdp("status", "-w", starter).out


@pytest.mark.parametrize(
    "arguments",
    [
        ["refesh"],
        ["refresh", "--nope"],
        ["refresh", "one", "two"],
        ["demo-data", "--people", "5"],
        ["demo-data", "--people", "many"],
        ["serve", "--port", "abc"],
        ["init"],
        [],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(arguments):
    answer = cdp(*arguments)
    assert answer.code == 2
    assert "Usage: cdp-ml" in answer.err + answer.out
    assert "Traceback" not in answer.err


def test_the_installed_command_is_the_one_tested_here(tmp_path):
    entry = "from importlib.metadata import entry_points as e; e(name='cdp-ml', group='console_scripts')['cdp-ml'].load()()"  # noqa: E501
    done = run_python(entry, "refresh", "-w", tmp_path)
    assert_refused(Answer(done.returncode, done.stdout, done.stderr), "no such file")


# ---- quick to start ----


def run_python(code, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


COMMAND = """
import cdp_ml.cli, sys
sys.argv = ["cdp-ml", "{}"]
try:
    cdp_ml.cli.main()
except SystemExit as end:
    assert not end.code
"""


@pytest.mark.parametrize(
    "code",
    [
        "import cdp_ml",
        COMMAND.format("--help"),
        COMMAND.format("tables"),
    ],
    ids=["import cdp_ml", "cdp-ml --help", "cdp-ml tables"],
)
def test_nothing_heavy_is_imported(code):
    shown = f"\nimport sys; print('LOADED', sorted(set({HEAVY}) & set(sys.modules)))"
    done = run_python(code + shown)
    assert done.stdout.splitlines()[-1:] == ["LOADED []"], done.stdout[-300:] + done.stderr[-300:]


# ---- odd workspaces that are right ----

HEAD = "region: GB\nas_of: 2026-05-03\n"
PEOPLE = """\
  customers:
    kind: people
    path: data/customers.csv
    fields: {source_record_id: id, given_name: first_name, surname: last_name, email: email,
             phone: phone, birth_date: birth_date, event_timestamp: updated_at}
"""
ORDERS = """\
  orders:
    kind: transactions
    path: data/orders.csv
    identifier_type: customers
    fields: {order_id: order_no, identifier: customer_id, product_id: sku, quantity: quantity,
             unit_price: price, event_timestamp: ordered_at}
"""
CONSENTS = """\
  consents:
    kind: consents
    path: data/consents.csv
    identifier_type: customers
    fields: {identifier: id, purpose: purpose, granted: granted, event_timestamp: at}
  exposures:
    kind: exposures
    path: data/exposures.csv
    identifier_type: customers
    fields: {campaign_id: campaign, identifier: id, arm: arm, event_timestamp: at}
"""
EVENTS = """\
  web:
    kind: events
    path: data/web.csv
    identifier_type: cookie
    fields: {identifier: cookie, event_type: type, event_timestamp: at}
"""
SEGMENTS = "segments: {recent_buyers: {where: days_since_last_order < 90}}\n"


def declare(*sources, segments=SEGMENTS):
    return write("cdp.yaml", HEAD + "sources:\n" + "".join(sources) + segments)


def anonymous(home):
    lines = (home / "data" / "orders.csv").read_text().splitlines()
    cells = [line.split(",") for line in lines[1:]]
    lines[1:] = [",".join([order, "", *rest]) for order, _, *rest in cells]
    (home / "data" / "orders.csv").write_text("\n".join(lines) + "\n")


NO_CUSTOMERS = "No customers as of 2026-05-03: no source of kind people has any rows"
NOT_THEIRS = r"0 of 5 order lines by known customers: see the sources' 'identifier'"
THREE = "4 records are 3 customers as of 2026-05-03"

ODD = {
    "people only": (declare(PEOPLE), [THREE], 3),
    "one record": (
        both(declare(PEOPLE), lambda home: write("data/customers.csv", "\n".join(
            (home / "data" / "customers.csv").read_text().splitlines()[:2]) + "\n")(home)),
        ["1 record is 1 customer as of 2026-05-03"], 1),
    "orders without people": (declare(ORDERS), [NO_CUSTOMERS, NOT_THEIRS], 0),
    "all orders anonymous": (anonymous, [THREE, NOT_THEIRS], 3),
    "events only": (
        both(declare(EVENTS), write("data/web.csv", "cookie,type,at\n"
             "c1,product_view,2026-04-01T10:00:00\nc2,product_view,2026-04-02T10:00:00\n")),
        [NO_CUSTOMERS, "0 of 2 events by known customers"], 0),
    "consents and exposures": (
        both(declare(PEOPLE, ORDERS, CONSENTS, segments=SEGMENTS.replace("}}", ", consent: ads}}")),
             write("data/consents.csv", "id,purpose,granted,at\n1,ads,yes,2026-01-01\n"
                                        "3,ads,no,2026-01-01\n"),
             write("data/exposures.csv", "campaign,id,arm,at\nspring,1,treatment,2026-04-01\n")),
        [THREE, "recent_buyers 1 1 0"], 3),
    "no models": (append("cdp.yaml", "models: []\n"), [THREE], 3),
    "every order refused": (
        both(declare(PEOPLE, ORDERS), write("data/orders.csv",
             "order_no,customer_id,sku,quantity,price,ordered_at\nA1,1,mug,x,7.50,2026-02-01\n")),
        ["1 orders: quantity: not a number", THREE], 3),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_an_odd_workspace_is_published_and_every_model_says_why_it_is_not_there(name, fresh):
    change, expected, customers = ODD[name]
    change(fresh)
    first = cdp("refresh", "-w", fresh)
    assert_published(fresh, first, expected, customers)
    assert ("churn_90d" in first.out) == (name != "no models")


def test_the_workspace_that_init_makes_is_published(refreshed):
    assert_published(*refreshed, [THREE, "5 of 5 order lines by known customers"], 3)


def assert_published(home, first, expected, customers):
    """The first refresh says what it found; models say why there are none; the second is idle."""
    assert (first.code, first.err) == (0, ""), first
    for pattern in (*expected, "recent_buyers", "Published run"):
        assert re.search(pattern, " ".join(first.out.split())), pattern
    assert "cdp-ml serve" not in first.out
    lake = published(home)
    assert lake.arrow("customers").num_rows == customers
    for model in last_run(lake.root)["summary"]["train"]["models"].values():
        assert model["version"] is None
        assert re.search(r"\d", model["verdict"])
    again = cdp("refresh", "-w", home)
    assert (again.code, again.err) == (0, "")
    assert again.out.startswith("Up to date.")


def test_the_trial_without_rows_sees_the_columns_of_the_real_people(starter):
    cdp_ = cdp_ml.open(starter)
    people = people_at(cdp_.lake, cdp_.con, cdp_.as_of)
    real = people.schema().to_pyarrow()
    trial = people_schema()
    assert set(trial.names) == set(real.names)
    for name in trial.names:
        assert pa.types.is_floating(trial.field(name).type) == pa.types.is_floating(
            real.field(name).type
        )
