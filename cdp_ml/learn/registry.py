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
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdp_ml.errors import NotPromotedError
from cdp_ml.learn.report import description, parameters, write_report
from cdp_ml.learn.score import Predictor

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from cdp_ml.config import Settings
    from cdp_ml.learn.training import Trained

CHAMPION = "champion"
LINKAGE = "How records are recognized as one person: a run for each training of the linkage model"
_SKOPS_TYPES = ["numpy.dtype"]
"""What loading may create beyond scikit-learn's and NumPy's own types that skops trusts."""
_NOTE = "mlflow.note.content"
"""What MLflow's pages show as the description of a run or an experiment."""
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
        name = f"{trained.spec.name} as of {trained.split.as_of:%Y-%m-%d}"
        tags = {**_tags(trained, versions, run_id), _NOTE: description(trained)}
        with mlflow.start_run(experiment_id=experiment, run_name=name, tags=tags) as run:
            _log_facts(client, run.info.run_id, trained, versions)
            with tempfile.TemporaryDirectory() as folder:
                write_report(trained, Path(folder))
                client.log_artifacts(run.info.run_id, folder)
            model_uri = _log_model(trained)
        tags = {"run_id": run_id, "training": training}
        return _register(client, trained, model_uri, run.info.run_id, tags)


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
    """Make a version the champion: the one that scores.

    Raises:
        NotPromotedError: if there is no such version.
    """
    with _quiet():
        from mlflow.exceptions import MlflowException

        try:
            _client(settings).set_registered_model_alias(name, CHAMPION, str(version))
        except MlflowException:
            raise NotPromotedError(
                f"model '{name}' has no version {version}; 'cdp-ml ui' shows those there are"
            ) from None


def champion_version(settings: Settings, name: str) -> int | None:
    """The version that bears the alias `champion`; None if there is none."""
    if not (_folder(settings) / "mlflow.db").is_file():
        return None
    with _quiet():
        from mlflow.exceptions import MlflowException

        try:
            return int(_client(settings).get_model_version_by_alias(name, CHAMPION).version)
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
    return Predictor(
        name=name,
        version=version,
        task=described["task"],
        features=tuple(described["features"]),
        model=_load_estimator(folder, described["task"]),
        clusters=tuple(described["clusters"]),
    )


def _load_estimator(folder: Path, task: str) -> Any:
    if task == "clustering":
        import skops.io

        return skops.io.load(folder / "model.skops", trusted=_SKOPS_TYPES)
    import lightgbm

    return lightgbm.Booster(model_file=str(folder / "model.lgb"))


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
            "'cdp-ml refresh' trains it"
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


def _log_facts(
    client: MlflowClient, run: str, trained: Trained, versions: Mapping[str, int]
) -> None:
    """Metrics, parameters and the tables read, in one request each."""
    from mlflow.entities import Dataset, DatasetInput

    values: dict[str, float] = dict(trained.rows)
    for name, e in trained.evaluation.metrics.items():
        values[name] = e.value
        if "/" not in name and e.low < e.high:  # the intervals of baselines are in metrics.json
            values |= {f"{name}_low": e.low, f"{name}_high": e.high}
    _log_values(client, run, parameters(trained), values)
    inputs = [
        DatasetInput(Dataset(table, str(v), "delta_table", json.dumps({"version": v})))
        for table, v in versions.items()
    ]
    if inputs:
        client.log_inputs(run, inputs)


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
    given = {
        "name": "model",
        "signature": _signature(trained),
        "input_example": pd.DataFrame([trained.typical]),
        "metadata": {
            "task": predictor.task,
            "features": list(predictor.features),
            "clusters": list(predictor.clusters),
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
    import mlflow.lightgbm

    required = _requirements("lightgbm", "pandas")
    return str(
        mlflow.lightgbm.log_model(predictor.model, pip_requirements=required, **given).model_uri
    )


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
