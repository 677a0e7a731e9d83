import csv
import io
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

import cdp_ml
from cdp_ml.errors import ConfigError
from cdp_ml.summary import render_evaluation
from cdp_ml.truth import _compare, evaluate_workspace, read_labels


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def test_labels_are_read_as_people_write_them(tmp_path):
    path = write(
        tmp_path / "labels.csv",
        "decision,record_l,record_r,reason",
        "Same,crm:1,shop:2,uncertain",
        ",crm:1,shop:3,uncertain",
        "different ,crm:2,shop:3,bridge",
    )
    assert read_labels(path).to_pylist() == [
        {"record_l": "crm:1", "record_r": "shop:2", "decision": "same"},
        {"record_l": "crm:2", "record_r": "shop:3", "decision": "different"},
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["record_l,record_r,descision"], "labels.csv:1: no column 'decision'; did you mean"),
        (["record_l,record_r,decision", "a:1,b:1,yes"], "labels.csv:2: decision: write 'same'"),
        ([], "labels.csv:1: no column 'record_l'"),
    ],
)
def test_wrong_labels_are_one_clear_line(tmp_path, lines, message):
    with pytest.raises(ConfigError, match=message):
        read_labels(write(tmp_path / "labels.csv", *lines))
    with pytest.raises(ConfigError, match="no such file; 'cdp-ml identity review --out FILE'"):
        read_labels(tmp_path / "absent.csv")


def test_an_evaluation_has_sources_thresholds_labels_and_charts(demo_workspace, tmp_path):
    cdp = cdp_ml.open(demo_workspace)
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["record_l", "record_r", "decision"])
        for edge in cdp.lake.arrow("edges").slice(0, 30).to_pylist():
            out.writerow([edge["record_l"], edge["record_r"], "same"])
    found = evaluate_workspace(cdp, tmp_path / "labels.csv", tmp_path / "charts")
    assert {"crm-crm", "crm-shop", "newsletter-pos"} <= set(found["sources"])
    total = sum(s["pairs_true"] for s in found["sources"].values())
    assert total == found["identity"]["pairs_true"]
    (in_use,) = [t for t in found["thresholds"] if t["threshold"] == found["threshold"]]
    for name in ("customers", "precision", "recall", "b3_f1"):
        assert in_use[name] == pytest.approx(found["identity"][name])
    assert found["labels"]["judged"] == 30
    assert found["labels"]["edges"]["recall"] == 1
    assert all(Path(chart).is_file() for chart in found["charts"])


def test_what_an_evaluation_prints_fits_a_terminal(demo_workspace, tmp_path):
    labels = write(tmp_path / "labels.csv", "record_l,record_r,decision", "crm:x,crm:y,same")
    found = evaluate_workspace(cdp_ml.open(demo_workspace), labels)
    console = Console(width=80, file=io.StringIO())
    console.print(render_evaluation(found))
    text = console.file.getvalue()
    assert "…" not in text
    for part in ("B-cubed", "crm-shop", "* in use", "1 left out (of records that are not there)"):
        assert part in text
    assert "they do not stand for all.\n" in text


def test_without_a_truth_labels_are_all_there_is(demo_workspace, tmp_path, monkeypatch):
    cdp = cdp_ml.open(demo_workspace)
    monkeypatch.setitem(cdp.__dict__, "settings", cdp.settings.model_copy(update={"truth": None}))
    labels = write(tmp_path / "labels.csv", "record_l,record_r,decision")
    assert set(evaluate_workspace(cdp, labels)) == {"labels"}
    with pytest.raises(ConfigError, match=r"no 'truth'; .* cdp-ml evaluate --labels FILE"):
        evaluate_workspace(cdp)
    with pytest.raises(ConfigError, match="no 'truth'"):
        evaluate_workspace(cdp, labels, tmp_path / "charts")


def test_a_model_is_compared_with_an_observer_and_with_who_knows_all():
    known = pd.DataFrame({
        "label": [0, 1] * 40,
        "score": [0.2, 0.6, 0.4, 0.3] * 20,  # three of four pairs the right way round
        "probability": [0.0, 1.0] * 40,
        "observable": [0.2, 0.6, 0.4, 0.6] * 20,
    })  # fmt: skip
    found = _compare(known)
    assert (found["auc"], found["auc_truth"], found["attained"]) == (0.75, 1.0, 0.5)
    assert (found["auc_observer"], found["attained_observer"]) == (1.0, 0.5)
    assert "auc_observer" not in _compare(known.drop(columns="observable"))
    assert "auc_observer" not in _compare(known.assign(observable=float("nan")))
