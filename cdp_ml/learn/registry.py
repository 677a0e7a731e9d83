"""Runs, versions and champions in MLflow: the only module that knows it.

SQLite holds runs and registry, a folder the artifacts, both under the workspace's data folder.
Models are stored without pickle: LightGBM as text, scikit-learn by skops with a fixed list of types
that loading may create.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import datetime
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdp_ml.contracts import TRAIT_TABLES
from cdp_ml.errors import NotPromotedError
from cdp_ml.learn.labels import facts_table
from cdp_ml.learn.next_category import Ranker
from cdp_ml.learn.next_category_features import FEATURES as NEXT_FEATURES
from cdp_ml.learn.report import candidates, decisive, description, parameters, write_report
from cdp_ml.learn.score import Predictor
from cdp_ml.learn.uplift import UpliftModel, load_uplift, save_uplift
from cdp_ml.learn.value import ValueModel, expectation_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from cdp_ml.config import ModelSpec, Settings
    from cdp_ml.learn.training import Trained

CHAMPION, CHALLENGER = "champion", "challenger"
_CHAMPIONS = "cdp_ml.champions"
"""The tag of a registered model that lists the versions that were its champion, oldest first."""
LINKAGE = "How records are recognized as one person: a run for each training of the linkage model"
_SKOPS_TYPES = ["numpy.dtype"]
"""What loading may create beyond scikit-learn's and NumPy's own types that skops trusts."""
_NOTE = "mlflow.note.content"
"""What MLflow's pages show as the description of a run or an experiment."""
_VIEW, _VIEW_KEY = "The runs beside their baselines", "baselines"
_LOCATIONS = {
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
    "model_versions": "storage_location",
}
"""Where MLflow's tables hold absolute locations of artifacts."""
log = logging.getLogger(__name__)


def tracking_uri(settings: Settings) -> str:
    """Where MLflow keeps this workspace's runs and models, for `mlflow ui` and notebooks."""
    return f"sqlite:///{_folder(settings) / 'mlflow.db'}"


def log_run(settings: Settings, trained: Trained, versions: Mapping[str, int], run_id: str) -> int:
    """Record a training run and register its model; it is served only once promoted.

    A refresh that was killed after registering a model finds it again: one version a refresh.

    Args:
        settings: says where the workspace's data is.
        trained: the model.
        versions: version of each lake table that was read.
        run_id: the refresh.

    Returns:
        The registered version, from 1.
    """
    with _quiet():
        import mlflow

        client = _client(settings)
        training = _training(trained, versions, run_id)
        if (registered := _version_of(client, trained.spec.name, training)) is not None:
            return registered
        _follow_move(settings)
        experiment = _experiment(client, settings, trained.spec.name, trained.spec.description)
        _save_view(client, experiment, trained)
        # Lists of runs show no more than the beginning.
        name = f"{trained.split.as_of:%Y-%m-%d} {'promoted' if trained.promoted else 'refused'}"
        tags = {**_tags(trained, versions, run_id), _NOTE: description(trained)}
        with mlflow.start_run(experiment_id=experiment, run_name=name, tags=tags) as run:
            _log_facts(client, run.info.run_id, trained, versions)
            with tempfile.TemporaryDirectory() as folder:
                write_report(trained, Path(folder))
                client.log_artifacts(run.info.run_id, folder)
            model_uri = _log_model(trained)
            _log_candidates(client, experiment, run.info.run_id, trained)
        tags = {"run_id": run_id, "training": training, "as_of": f"{trained.split.as_of:%Y-%m-%d}"}
        version = _register(client, trained, model_uri, run.info.run_id, tags)
        client.set_registered_model_alias(trained.spec.name, CHALLENGER, str(version))
        return version


def log_monitoring(
    settings: Settings, name: str, version: int, metrics: Mapping[str, float], as_of: datetime
) -> None:
    """Add to a version's run how its scores drift, or what they turned out to be worth.

    Args:
        settings: says where the workspace's data is.
        name: the model's name.
        version: the version that gave the scores.
        metrics: such as psi_score or realized_auc.
        as_of: the instant of the scores; its day is the step of MLflow's chart.
    """
    if not metrics:
        return
    with _quiet():
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        client = _client(settings)
        try:
            run = client.get_model_version(name, str(version)).run_id
        except MlflowException:
            return
        when, day = int(as_of.timestamp() * 1000), as_of.toordinal()
        client.log_batch(run, metrics=[Metric(k, v, when, day) for k, v in metrics.items()])


def log_linkage(
    settings: Settings,
    version: str,
    run_id: str,
    facts: tuple[Mapping[str, str], Mapping[str, float]],
    write: Callable[[Path], None],
    note: str,
) -> None:
    """Record the training of a linkage model in the experiment `identity`.

    A refresh that was killed after recording it does not record it again.

    Args:
        settings: says where the workspace's data is.
        version: the model's.
        run_id: the refresh.
        facts: parameters and metrics.
        write: writes the run's files into a folder; none may hold a customer's data.
        note: the run's description, Markdown.
    """
    with _quiet():
        import mlflow

        client = _client(settings)
        experiment = _experiment(client, settings, "identity", LINKAGE)
        _follow_move(settings)
        tags = {**_common_tags(run_id), "cdp_ml.linkage_model": version, _NOTE: note}
        recorded = (
            f"tags.`cdp_ml.run_id` = '{run_id}' AND tags.`cdp_ml.linkage_model` = '{version}' "
            "AND attributes.status = 'FINISHED'"
        )
        if client.search_runs([experiment], recorded, max_results=1):
            return
        name = f"identity {version}"
        with (
            mlflow.start_run(experiment_id=experiment, run_name=name, tags=tags) as run,
            tempfile.TemporaryDirectory() as folder,
        ):
            _log_values(client, run.info.run_id, *facts)
            write(Path(folder))
            client.log_artifacts(run.info.run_id, folder)


def promote(settings: Settings, name: str, version: int) -> None:
    """Make a version the champion: the one with which the next refresh scores.

    A challenger that becomes the champion is none any more.

    Raises:
        NotPromotedError: if there is no such version.
    """
    with _quiet():
        client = _client(settings)
        _crown(client, name, version, _champions(client, name))


def _crown(client: MlflowClient, name: str, version: int, former: list[int]) -> None:
    """Give a version the alias `champion`, and note it after the former ones."""
    from mlflow.exceptions import MlflowException

    try:
        client.set_registered_model_alias(name, CHAMPION, str(version))
    except MlflowException:
        there = sorted(int(v.version) for v in client.search_model_versions(f"name = '{name}'"))
        hint = (
            f"it has {', '.join(map(str, there))}" if there else "'cdp-ml refresh' makes the first"
        )
        raise NotPromotedError(f"model '{name}' has no version {version}; {hint}") from None
    if client.get_model_version(name, str(version)).tags.get("promoted") == "false":
        client.set_model_version_tag(name, str(version), "promoted", "by hand")
    noted = former if former[-1:] == [version] else [*former, version]
    client.set_registered_model_tag(name, _CHAMPIONS, json.dumps(noted))
    if _version_by_alias(client, name, CHALLENGER) == version:
        client.delete_registered_model_alias(name, CHALLENGER)


def rollback(settings: Settings, name: str) -> int:
    """Make the champion before the present one champion again.

    Returns:
        Its version.

    Raises:
        NotPromotedError: if there was none before.
    """
    with _quiet():
        client = _client(settings)
        present = _version_by_alias(client, name, CHAMPION)
        former = _champions(client, name)
        former = former[:-1] if former[-1:] == [present] else former
        if not former:
            raise NotPromotedError(
                f"model '{name}' had no champion before the present one; "
                f"'cdp-ml promote {name} VERSION' chooses another"
            )
        _crown(client, name, former[-1], former)
    return former[-1]


def _champions(client: MlflowClient, name: str) -> list[int]:
    """The versions that were a model's champion, the present one last."""
    from mlflow.exceptions import MlflowException

    try:
        tags = client.get_registered_model(name).tags
    except MlflowException:
        return []
    return [int(v) for v in json.loads(tags.get(_CHAMPIONS, "[]"))]


def champion_version(settings: Settings, name: str) -> int | None:
    """The version that bears the alias `champion`; None if there is none.

    Read from the store itself, for every refresh asks: MLflow alone takes seconds to import.
    """
    database = _folder(settings) / "mlflow.db"
    if not database.is_file():
        return None
    asked = "SELECT version FROM registered_model_aliases WHERE name = ? AND alias = ?"
    with closing(sqlite3.connect(database)) as store:
        try:
            found = store.execute(asked, (name, CHAMPION)).fetchone()
        except sqlite3.OperationalError:  # no table yet: the store is being made
            return None
    return int(found[0]) if found else None


def _version_by_alias(client: MlflowClient, name: str, alias: str) -> int | None:
    from mlflow.exceptions import MlflowException

    try:
        return int(client.get_model_version_by_alias(name, alias).version)
    except MlflowException:
        return None


def ui_command(settings: Settings, port: int) -> tuple[list[str], dict[str, str]]:
    """The command and environment that open MLflow's own pages on this workspace's runs."""
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", tracking_uri(settings)]
    with _quiet():
        _client(settings).search_experiments(max_results=1)
        _follow_move(settings)
    # Its libraries' deprecations are no concern of the reader's.
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    return [*command, "--port", str(port), "--workers", "1"], environment


def load_model(settings: Settings, name: str, version: int) -> Predictor:
    """Load a registered model for scoring, without executing pickled code.

    Raises:
        NotPromotedError: if there is no such version, or its files are gone.
    """
    with _quiet():
        folder = _model_folder(settings, name, version)
        from mlflow.models import Model

        described = Model.load(str(folder)).metadata or {}
    until = described.get("learned_until")
    return Predictor(
        name=name,
        version=version,
        task=described["task"],
        features=tuple(described["features"]),
        model=_load_estimator(folder, described),
        clusters=tuple(described["clusters"]),
        profile=described.get("profile", {}),
        learned_until=datetime.fromisoformat(until) if until else None,
        question=described.get("question"),
    )


def load_champion(settings: Settings, spec: ModelSpec, version: int | None) -> Predictor | None:
    """A model's present champion; none, and a warning, if it cannot be used any more.

    That is, if its files are gone, or it predicts something else than the specification now asks.
    """
    if version is None:
        return None
    try:
        champion = load_model(settings, spec.name, version)
    except NotPromotedError as error:
        log.warning("%s", error)
        return None
    if not champion.answers(spec):
        log.warning(
            "model '%s': version %d predicts something else than models/%s.yaml now asks for: it "
            "is neither served nor compared with",
            spec.name,
            version,
            spec.name,
        )
        return None
    return champion


def _load_estimator(folder: Path, described: Mapping[str, Any]) -> Any:
    if described["task"] == "clustering":
        import skops.io

        return skops.io.load(folder / "model.skops", trusted=_SKOPS_TYPES)
    if described["task"] == "uplift":
        return load_uplift(folder / "artifacts" / "uplift")
    import lightgbm

    if described["task"] == "value":
        booster = lightgbm.Booster(model_file=str(folder / "artifacts" / "model.lgb"))
        expectation = expectation_of(described["expectation"])
        return ValueModel(booster, tuple(described["features"]), expectation)
    booster = lightgbm.Booster(model_file=str(folder / "model.lgb"))
    if described["task"] == "next_category":
        if tuple(described["features"]) != NEXT_FEATURES:
            raise NotPromotedError(
                "a model of the next items was made by another version of cdp-ml; 'cdp-ml refresh "
                "--force' trains it again"
            )
        return Ranker(booster, described["parameters"])
    return booster


def _model_folder(settings: Settings, name: str, version: int) -> Path:
    """Where a version's files are, also after the workspace was moved or copied elsewhere."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        uri = _client(settings).get_model_version_download_uri(name, str(version))
        within = uri.rpartition("/mlflow/artifacts/")[2]
        here = _folder(settings) / "artifacts" / within
        return here if here.is_dir() else Path(download_artifacts(artifact_uri=uri))
    except (MlflowException, OSError):
        raise NotPromotedError(
            f"model '{name}' version {version} cannot be loaded from {_folder(settings)}; "
            f"'cdp-ml refresh --force' or 'cdp-ml rollback {name}' mends that"
        ) from None


def _folder(settings: Settings) -> Path:
    return (settings.data / "mlflow").resolve()


def _client(settings: Settings) -> MlflowClient:
    """A client of the workspace's store, which is made on first use."""
    import mlflow

    _folder(settings).mkdir(parents=True, exist_ok=True)
    uri = tracking_uri(settings)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    return mlflow.MlflowClient(uri, uri)


def _follow_move(settings: Settings) -> None:
    """Let MLflow read and write here after the workspace was moved or copied elsewhere.

    It keeps absolute locations and has no call to change them: a copy would write into the
    original.
    """
    here, within = (_folder(settings) / "artifacts").as_uri() + "/", "/mlflow/artifacts/"
    with closing(sqlite3.connect(_folder(settings) / "mlflow.db")) as store, store:
        for table, column in _LOCATIONS.items():
            store.execute(
                f"UPDATE {table} SET {column} = ?1 || substr({column}, instr({column}, ?2) + ?3) "
                f"WHERE instr({column}, ?2) > 0 AND substr({column}, 1, ?4) <> ?1",
                (here, within, len(within), len(here)),
            )


def _experiment(client: MlflowClient, settings: Settings, name: str, description: str) -> str:
    """The experiment of a model's runs, described for the list of experiments."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        number = str(found.experiment_id)
    else:
        location = (_folder(settings) / "artifacts" / name).as_uri()
        kind = {"mlflow.experimentKind": "custom_model_development"}
        number = str(client.create_experiment(name, location, kind))
        client.set_experiment_tag("0", _NOTE, "Runs of your own that name no experiment")
    client.set_experiment_tag(number, _NOTE, description)
    return number


def _save_view(client: MlflowClient, experiment: str, trained: Trained) -> None:
    """Offer a list of runs with what decides, which MLflow's own list leaves out.

    It is there in the menu of views, and behind a link in the experiment's description. MLflow
    has no call for it: what its pages save is a tag of the experiment.
    """
    columns = [f"metrics.`{_valid(m)}`" for m in decisive(trained.evaluation.metrics)]
    state = {"selectedColumns": ["attributes.`Models`", *columns]}
    now = int(time.time() * 1000)
    view = {"name": _VIEW, "createdAt": now, "updatedAt": now, "state": json.dumps(state)}
    client.set_experiment_tag(experiment, f"mlflow.sharedViewState.{_VIEW_KEY}", json.dumps(view))
    link = f"[{_VIEW}](#/experiments/{experiment}/runs?viewStateShareKey={_VIEW_KEY})"
    client.set_experiment_tag(experiment, _NOTE, f"{trained.spec.description} {link}")


def _log_facts(
    client: MlflowClient, run: str, trained: Trained, versions: Mapping[str, int]
) -> None:
    """Metrics, parameters and the tables read, in one request each."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    _log_values(client, run, parameters(trained), {**logged_metrics(trained), **trained.rows})
    read = tables_read(trained.spec)
    inputs = [
        DatasetInput(
            Dataset(table, f"version {v}", "delta_table", json.dumps({"version": v})),
            [InputTag("mlflow.data.context", "training")],
        )
        for table in read
        if (v := versions.get(table)) is not None
    ]
    if inputs:
        client.log_inputs(run, inputs)


def logged_metrics(trained: Trained) -> dict[str, float]:
    """The metrics of a run by name, with the sides of the intervals of the model's own.

    The intervals of baselines are in metrics.json. What is the same for all scores, such as the
    base rate, is there once.
    """
    values, found = {}, trained.evaluation.metrics
    for name, e in found.items():
        rival, _, metric = name.rpartition("/")
        if rival and metric in found and found[metric] == e:
            continue
        values[name] = e.value
        if rival in ("", "champion") and e.low < e.high:
            values |= {f"{name}_low": e.low, f"{name}_high": e.high}
    return values


def tables_read(spec: ModelSpec) -> tuple[str, ...]:
    """The tables from which a model is trained: of its features, outcomes and campaign."""
    keys = ("identifiers", "crosswalk")
    if spec.task == "next_category":
        return ("transactions", "products", *keys)
    if spec.task == "clustering":
        return TRAIT_TABLES
    campaign = ("exposures",) if spec.task == "uplift" else ()
    products = ("products",) if spec.label.category or spec.label.product else ()
    return (*TRAIT_TABLES, *campaign, facts_table(spec.label), *products, *keys)


def _log_values(
    client: MlflowClient, run: str, params: Mapping[str, str], metrics: Mapping[str, float]
) -> None:
    from mlflow.entities import Metric, Param

    now = int(time.time() * 1000)
    client.log_batch(
        run,
        metrics=[Metric(_valid(k), float(v), now, 0) for k, v in metrics.items()],
        params=[Param(k, v[:6000]) for k, v in params.items()],
    )


def _valid(name: str) -> str:
    """A name that MLflow takes; that of a rule may hold SQL."""
    return re.sub(r"[^\w./ -]+", "_", name)


def _common_tags(run_id: str) -> dict[str, str]:
    commit = _commit()
    return {
        "mlflow.source.name": "cdp-ml",
        "mlflow.source.type": "JOB",
        "mlflow.user": "cdp-ml",
        **({"mlflow.source.git.commit": commit} if commit else {}),
        "cdp_ml.version": installed("cdp-ml"),
        "cdp_ml.run_id": run_id,
    }


def _tags(trained: Trained, versions: Mapping[str, int], run_id: str) -> dict[str, str]:
    return {
        **_common_tags(run_id),
        "cdp_ml.specification": trained.spec.fingerprint(),
        "cdp_ml.table_versions": json.dumps(dict(versions), sort_keys=True),
        "cdp_ml.promoted": str(trained.evaluation.promoted).lower(),
        "cdp_ml.verdict": trained.evaluation.verdict,
    }


def _log_model(trained: Trained) -> str:
    """Store the model with signature, example, requirements and what loading needs to know."""
    import pandas as pd

    predictor = trained.predictor
    given: dict[str, Any] = {
        "name": "model",
        "signature": _signature(trained),
        "input_example": pd.DataFrame([trained.typical]),
        "metadata": {
            "task": predictor.task,
            "features": list(predictor.features),
            "clusters": list(predictor.clusters),
            "profile": dict(trained.profile),
            "question": predictor.question,
            "learned_until": predictor.learned_until and predictor.learned_until.isoformat(),
        },
    }
    if predictor.task == "clustering":
        import mlflow.sklearn

        return str(
            mlflow.sklearn.log_model(
                predictor.model,
                serialization_format="skops",
                skops_trusted_types=_SKOPS_TYPES,
                pip_requirements=_requirements("scikit-learn", "skops", "pandas"),
                **given,
            ).model_uri
        )
    if predictor.task == "value":
        return _log_value_model(predictor.model, given)
    if predictor.task == "uplift":
        return _log_uplift_model(predictor.model, given)
    if predictor.task == "next_category":
        given["metadata"] |= {"parameters": dict(predictor.model.parameters)}
    import mlflow.lightgbm

    required = _requirements("lightgbm", "pandas")
    return str(
        mlflow.lightgbm.log_model(predictor.booster, pip_requirements=required, **given).model_uri
    )


def _log_value_model(model: ValueModel, given: dict[str, Any]) -> str:
    """Store trees as text, the expectation as JSON, and the code with which MLflow joins them."""
    import mlflow.pyfunc

    fields = model.expectation_fields()
    given = {**given, "metadata": {**given["metadata"], "expectation": fields}}
    with tempfile.TemporaryDirectory() as folder:
        trees, expectation = Path(folder) / "model.lgb", Path(folder) / "expectation.json"
        model.booster.save_model(str(trees))
        expectation.write_text(json.dumps(fields), encoding="utf-8")
        return str(
            mlflow.pyfunc.log_model(
                python_model=str(Path(__file__).with_name("served_value.py")),
                artifacts={"trees": str(trees), "expectation": str(expectation)},
                pip_requirements=_requirements("cdp-ml", "lightgbm", "pandas", "scipy"),
                **given,
            ).model_uri
        )


def _log_uplift_model(model: UpliftModel, given: dict[str, Any]) -> str:
    """Store the folder of `save_uplift`, and the code with which MLflow reads it."""
    import mlflow.pyfunc

    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "uplift"
        save_uplift(model, folder)
        return str(
            mlflow.pyfunc.log_model(
                python_model=str(Path(__file__).with_name("served_uplift.py")),
                artifacts={"uplift": str(folder)},
                pip_requirements=_requirements(
                    "cdp-ml", "lightgbm", "pandas", "scikit-learn", "skops"
                ),
                **given,
            ).model_uri
        )


def _log_candidates(client: MlflowClient, experiment: str, parent: str, trained: Trained) -> None:
    """A child run for each that was tried: numbers of leaves or of clusters, or learners."""
    from mlflow.entities import Metric, Param, RunTag

    for candidate in candidates(trained):
        chosen = " (chosen)" if candidate.chosen else ""
        child = client.create_run(
            experiment,
            tags={"mlflow.parentRunId": parent, "mlflow.user": "cdp-ml"},
            run_name=candidate.name + chosen,
        ).info.run_id
        now = int(time.time() * 1000)
        client.log_batch(
            child,
            metrics=[Metric(k, v, now, 0) for k, v in candidate.metrics.items()],
            params=[Param(f"estimator.{k}", v) for k, v in candidate.parameters.items()],
            tags=[RunTag("cdp_ml.chosen", str(candidate.chosen).lower())],
        )
        client.set_terminated(child)


def _signature(trained: Trained) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, Schema

    inputs = Schema([ColSpec("double", f, required=False) for f in trained.predictor.features])
    output = "integer" if trained.spec.task == "clustering" else "double"
    return ModelSignature(inputs, Schema([ColSpec(output)]))


def _requirements(*packages: str) -> list[str]:
    """The installed versions; MLflow would spend a minute to find them out."""
    return [f"{p}=={installed(p)}" for p in ("mlflow", "numpy", *packages)]


def _register(
    client: MlflowClient, trained: Trained, model_uri: str, run: str, tags: Mapping[str, str]
) -> int:
    from mlflow.exceptions import MlflowException

    name, evaluation = trained.spec.name, trained.evaluation
    try:
        client.create_registered_model(
            name, {"task": trained.spec.task}, description=trained.spec.description
        )
    except MlflowException:
        log.debug("model %s is registered already", name)
    made = client.create_model_version(
        name,
        source=model_uri,
        run_id=run,
        tags={"promoted": str(evaluation.promoted).lower(), **tags},
        description=description(trained),
        await_creation_for=0,
    )
    return int(made.version)


def _training(trained: Trained, versions: Mapping[str, int], run_id: str) -> str:
    """What tells one training of a refresh from another."""
    made_from = [run_id, trained.spec.fingerprint(), str(trained.split), sorted(versions.items())]
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:16]


def _version_of(client: MlflowClient, name: str, training: str) -> int | None:
    """The version that a refresh has registered, if it has."""
    found = client.search_model_versions(f"name = '{name}' AND tags.training = '{training}'")
    return int(found[0].version) if found else None


def _commit() -> str | None:
    """The commit of the code, if it runs from a checkout of its own."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep MLflow from telling its makers, and from telling the user what we report ourselves."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_PRINT_MODEL_URLS_ON_CREATION", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    loggers = [logging.getLogger(n) for n in ("mlflow", "alembic")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
