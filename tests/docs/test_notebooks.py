"""Every notebook runs from top to bottom on a published workspace, and each cell shows something.

A notebook is a Python script in Jupytext's percent format. Its cells run in this process, so that
no kernel needs to be installed.
"""

import ast

import jupytext
import matplotlib
import matplotlib.pyplot as plt
import pytest
from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
every_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def run_cell(source, name, namespace):
    """Execute a cell as Jupyter does; returns the value of the expression it ends in."""
    body = ast.parse(source).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), name, "exec"), namespace)
    return last and eval(compile(ast.Expression(last.value), name, "eval"), namespace)


def code_cells(notebook):
    return [cell for cell in jupytext.read(notebook).cells if cell.cell_type == "code"]


def files_of(workspace):
    """What lies in a workspace, with the size of each file; SQLite's own scratch files aside."""
    return {
        path: path.stat().st_size
        for path in (workspace / ".cdp").rglob("*")
        if path.is_file() and not path.name.endswith(("-wal", "-shm", "-journal"))
    }


@every_notebook
def test_a_notebook_runs_on_the_demo_and_changes_nothing(
    notebook, demo_workspace, monkeypatch, capsys
):
    monkeypatch.setenv("CDP_WORKSPACE", str(demo_workspace))
    matplotlib.use("Agg")
    before, namespace = files_of(demo_workspace), {"__name__": "__main__"}
    for number, cell in enumerate(code_cells(notebook), 1):
        name = f"{notebook.name}, cell {number}"
        shown = run_cell(cell.source, name, namespace)
        assert capsys.readouterr().out or (shown is not None and repr(shown)), name
        for figure in map(plt.figure, plt.get_fignums()):
            figure.canvas.draw()
        plt.close("all")
    assert files_of(demo_workspace) == before


@every_notebook
def test_a_notebook_starts_with_its_title_and_every_cell_says_what_it_shows(notebook):
    cells = jupytext.read(notebook).cells
    assert cells[0].source.startswith("# ")
    assert all(cell.metadata.get("title") for cell in code_cells(notebook))


@every_notebook
def test_a_notebook_is_short_and_uses_no_private_name_of_the_package(notebook):
    cells = code_cells(notebook)
    assert len(cells) <= 12
    for cell in cells:
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("cdp_ml"):
                assert not [a.name for a in node.names if a.name.startswith("_")]
            if isinstance(node, ast.Attribute):
                assert not node.attr.startswith("_"), f"{notebook.name}: {node.attr}"
