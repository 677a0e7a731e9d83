"""The wheel holds all that an installation without a checkout needs."""

import tomllib
import zipfile

import pytest
from conftest import ROOT

SHIPPED = ("features", "models", "serving")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def files_of(folder):
    """The files of a folder as paths below it, without what Python or a service leaves there."""
    found = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    return {str(p) for p in found if "__pycache__" not in p.parts and p.suffix != ".pyc"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The names in the wheel, built in this process without network."""
    hatchling = pytest.importorskip(
        "hatchling.builders.wheel", reason="hatchling, which builds the wheel, is not installed"
    )
    builder = hatchling.WheelBuilder(str(ROOT))
    (path,) = builder.build(directory=str(tmp_path_factory.mktemp("dist")), versions=["standard"])
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


@pytest.mark.parametrize("folder", SHIPPED)
def test_the_wheel_holds_what_is_shipped(folder, wheel):
    wanted = {f"cdp_ml/shipped/{folder}/{name}" for name in files_of(ROOT / folder)}
    assert wanted <= wheel


def test_the_wheel_holds_the_package_and_the_starter_workspace(wheel):
    wanted = {f"cdp_ml/{name}" for name in files_of(ROOT / "cdp_ml")}
    assert wanted <= wheel
    assert "cdp_ml/starter/cdp.yaml" in wheel
    assert not {name for name in wheel if name.startswith(("tests/", "data/", "examples/"))}


def test_the_wheel_is_told_to_hold_what_is_shipped():
    target = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert target["packages"] == ["cdp_ml"]
    assert target["force-include"] == {name: f"cdp_ml/shipped/{name}" for name in SHIPPED}
    assert all((ROOT / name).is_dir() for name in SHIPPED)
