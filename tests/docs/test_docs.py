"""The documentation says what there is, and what it says is there."""

import re

import pytest
import typer
from conftest import ROOT

from cdp_ml.cli import app
from cdp_ml.contracts import TABLES
from cdp_ml.refresh import STEPS

README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"),
         *ROOT.glob("examples/**/*.md")]  # fmt: skip


@pytest.mark.parametrize("command", sorted(typer.main.get_command(app).commands))
def test_every_command_is_in_the_readme(command):
    assert f"`cdp-ml {command}" in README


def test_the_readme_names_no_command_that_is_not_there():
    named = set(re.findall(r"(?:^|`|- )cdp-ml ([a-z][a-z-]+)", README, re.MULTILINE))
    assert named <= set(typer.main.get_command(app).commands)


@pytest.mark.parametrize("target", ["demo", "test"])
def test_the_two_commands_are_targets_of_the_makefile(target):
    assert f"make {target}" in README
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("step", STEPS, ids=lambda s: s.name)
def test_every_step_and_what_it_writes_is_in_the_architecture(step):
    (row,) = re.findall(rf"^\| {step.name} \|.*$", ARCHITECTURE, re.MULTILINE)
    for table in step.writes:
        assert f"`{table}`" in row


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda t: t.name)
def test_every_table_and_column_says_what_it_means(table):
    assert table.row
    assert set(table.key) <= set(table.column_names)
    assert all(column.meaning for column in table.columns)
