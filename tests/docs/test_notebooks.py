"""Every notebook runs from top to bottom on a published workspace, and each cell shows something.

A notebook is a Python script in Jupytext's percent format. Its cells run in this process, so that
no kernel needs to be installed.
"""

import ast

import jupytext
import pytest
from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))


def run_cell(source, name, namespace):
    """Execute a cell as Jupyter does; returns the value of the expression it ends in."""
    body = ast.parse(source).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), name, "exec"), namespace)
    return last and eval(compile(ast.Expression(last.value), name, "eval"), namespace)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_on_the_demo(notebook, demo_workspace, monkeypatch, capsys):
    monkeypatch.setenv("CDP_WORKSPACE", str(demo_workspace))
    cells = [cell for cell in jupytext.read(notebook).cells if cell.cell_type == "code"]
    namespace = {"__name__": "__main__"}
    for number, cell in enumerate(cells, 1):
        name = f"{notebook.name}, cell {number}"
        shown = run_cell(cell.source, name, namespace)
        assert capsys.readouterr().out or (shown is not None and repr(shown)), name


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_starts_with_its_title_and_every_cell_says_what_it_shows(notebook):
    cells = jupytext.read(notebook).cells
    assert cells[0].source.startswith("# ")
    assert all(cell.metadata.get("title") for cell in cells if cell.cell_type == "code")
