"""cdp.yaml, the specifications in models/ and the environment, as frozen and validated objects.

The only place where YAML becomes objects. A mistake is reported with its file and line and the
nearest valid names. Environment variables `CDP_<FIELD>` (nested: `CDP_ENGINE__THREADS`) win over
cdp.yaml.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args
from zoneinfo import available_timezones

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from cdp_ml.errors import ConfigError, nearest

Kind = Literal["people", "events", "transactions", "products", "consents", "exposures"]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


def _known_timezone(name: str) -> str:
    if name not in available_timezones():
        raise ValueError(f"no time zone '{name}'; {nearest(name, available_timezones())}")
    return name


def _known_region(code: str) -> str:
    from phonenumbers import SUPPORTED_REGIONS

    if code not in SUPPORTED_REGIONS:
        raise ValueError(f"no region '{code}'; write an ISO 3166 code such as GB, US or DE")
    return code


def _as_instant(value: Any) -> Any:
    if isinstance(value, str) and value not in ("latest", "now"):
        try:
            return date.fromisoformat(value)
        except ValueError:
            raise ValueError("write 'latest', 'now' or a date such as 2026-05-01") from None
    return value


TimeZone = Annotated[str, AfterValidator(_known_timezone)]
Region = Annotated[str, AfterValidator(_known_region)]
Days = Annotated[int, Field(gt=0, le=36_500)]
AsOf = Annotated[date | Literal["latest", "now"], BeforeValidator(_as_instant)]


class Spec(BaseModel):
    """A validated, immutable piece of configuration; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def fingerprint(self) -> str:
        """A hash of the content, the same for equal configuration."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


class FieldMap(Spec):
    """Where a canonical field comes from: a source field, or a constant.

    `format` is the strptime format of dates and timestamps that are not ISO 8601.
    """

    field: str | None = None
    value: str | None = None
    format: str | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> FieldMap:
        if (self.field is None) == (self.value is None):
            raise ValueError("give either 'field' or 'value'")
        return self


class Refuse(Spec):
    """Rows to be set aside as rejects: an SQL condition on the source's fields, and the reason."""

    where: str
    reason: str


class Login(Spec):
    """Who is behind a cookie: the field that says so, and the people source it refers to."""

    field: str
    source: str


class Source(Spec):
    """A declared source: where it is, its format, and how its fields map to the canonical ones."""

    kind: Kind
    path: str
    format: Literal["csv", "jsonl", "parquet", "sql"] | None = None
    table: str | None = None
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","
    encoding: str = "utf-8"
    timezone: TimeZone = "UTC"
    fields: dict[str, str | FieldMap]
    identifier_type: str | None = None
    identifiers: dict[str, str] = {}
    login: Login | None = None
    where: str | None = None
    refuse: tuple[Refuse, ...] = ()
    malformed: Literal["fail", "quarantine"] = "fail"

    @model_validator(mode="after")
    def _database_needs_table(self) -> Source:
        if self.is_database and self.table is None:
            raise ValueError("a database source needs 'table': the table or view to read")
        return self

    @property
    def is_database(self) -> bool:
        """Whether the path is a database URL."""
        return "://" in self.path

    def mapping(self, canonical: str) -> FieldMap | None:
        """Where `canonical` comes from in this source; None if it does not deliver it."""
        found = self.fields.get(canonical)
        return FieldMap(field=found) if isinstance(found, str) else found


class Engine(Spec):
    """What computes: DuckDB, embedded, within these limits; Spark does not run a refresh yet."""

    backend: Literal["duckdb", "spark"] = "duckdb"
    memory_limit: str = "2GB"
    threads: PositiveInt = 2


class Survivorship(Spec):
    """Which record's value a golden record takes.

    By `rule`: that of the source named first in `trust`, that of the record changed `latest`, or
    the one that most records share (`most_frequent`). Ties go to the latest, then by `trust`.
    """

    rule: Literal["trust", "latest", "most_frequent"] = "latest"
    trust: tuple[str, ...] = ()


class Segment(Spec):
    """A rule-based segment: who satisfies an SQL condition on customers and their traits."""

    where: str
    description: str = ""
    consent: str | None = None


class Truth(Spec):
    """Known answers, read by evaluation alone.

    `records` maps a record to its true person; `fields` names the columns of the file, and `source`
    is a constant for files of one source. `outcomes` holds true probabilities of outcomes.
    """

    records: str
    fields: dict[str, str] = {}
    source: str | None = None
    outcomes: str | None = None


def _check_people(place: str, name: str, people: Sequence[str]) -> None:
    if name not in people:
        raise ValueError(f"{place}: no people source '{name}'; {nearest(name, people)}")


class Settings(BaseSettings):
    """A workspace's configuration: cdp.yaml under the environment's overrides."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix="CDP_", env_nested_delimiter="__"
    )

    name: str = "cdp"
    home: Path = Path()
    data_dir: str = ".cdp"
    as_of: AsOf = "latest"
    region: Region = "GB"
    engine: Engine = Engine()
    sources: dict[str, Source]
    profiles: dict[str, Survivorship] = {}
    segments: dict[str, Segment] = {}
    models: tuple[str, ...] | None = None
    truth: Truth | None = None

    @field_validator("sources")
    @classmethod
    def _logins_and_consents_name_people(cls, sources: dict[str, Source]) -> dict[str, Source]:
        people = [name for name, source in sources.items() if source.kind == "people"]
        for name, source in sources.items():
            if source.login:
                _check_people(f"{name}.login.source", source.login.source, people)
            if source.kind == "consents" and source.identifier_type:
                _check_people(f"{name}.identifier_type", source.identifier_type, people)
        return sources

    @field_validator("profiles")
    @classmethod
    def _trusted_are_people(
        cls, profiles: dict[str, Survivorship], info: ValidationInfo
    ) -> dict[str, Survivorship]:
        sources = info.data.get("sources", {})
        people = [name for name, source in sources.items() if source.kind == "people"]
        for field, rule in profiles.items():
            for name in rule.trust if sources else ():
                _check_people(f"{field}.trust", name, people)
        return profiles

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment win over cdp.yaml."""
        return env_settings, init_settings

    @property
    def data(self) -> Path:
        """The folder of everything that cdp-ml writes."""
        return self.home / self.data_dir

    @property
    def lake(self) -> Path:
        """The folder of the tables."""
        return self.data / "lake"

    def online_store(self, number: int) -> Path:
        """The file of the online store, and feature registry, of a run."""
        return self.data / "online" / f"{number}.db"

    def linkage_model(self, version: str) -> Path:
        """The folder of a trained linkage model."""
        return self.data / "identity" / version

    def share(self, name: str) -> Path:
        """The workspace's folder `features`, `models` or `serving`, else the shipped one."""
        own = self.home / name
        return own if own.is_dir() else shipped(name)


class Label(Spec):
    """The outcome to predict: whether `event` happens (or not) within `within_days`.

    `event` is an order or a type of events such as email_opened; with `category` or `product`, one
    of these. A value model predicts what is spent on such orders.
    """

    event: str = "order"
    category: str | None = None
    product: str | None = None
    happens: bool = True
    within_days: Days = 30

    @property
    def outcome(self) -> str:
        """The outcome in words, such as "no order", or "order of cushions"."""
        what = "order" if self.event == "order" else self.event.replace("_", " ")
        of = " and ".join(x for x in (self.category, self.product) if x)
        return ("" if self.happens else "no ") + what + (f" of {of}" if of else "")


class Snapshots(Spec):
    """The instants of a training set: `count` of them, `every_days` apart, before the test's."""

    count: Annotated[int, Field(gt=0, le=1_000)] = 8
    every_days: Days = 30


class Tuning(Spec):
    """A search for better parameters on earlier instants, within a budget of minutes."""

    minutes: PositiveFloat


class Cut(Spec):
    """A predicted segment: the customers in the top share of a score, or above a score."""

    top: Share | None = None
    above: float | None = None
    description: str = ""
    consent: str | None = None

    @model_validator(mode="after")
    def _one_rule(self) -> Cut:
        if (self.top is None) == (self.above is None):
            raise ValueError("give either 'top' (a share) or 'above' (a score)")
        return self


_JUDGED = ("propensity", "value")
_TAKEN_BY = {
    **dict.fromkeys(("snapshots", "beat_baselines_by", "tuning"), _JUDGED),
    **dict.fromkeys(("label", "segments"), (*_JUDGED, "uplift")),
    **dict.fromkeys(("features", "population", "inputs"), (*_JUDGED, "uplift", "clustering")),
    **dict.fromkeys(("campaign", "treatment"), ("uplift",)),
    **dict.fromkeys(("item", "top"), ("next_category",)),
}
"""Which tasks take a key of a specification, of those that not all take."""


class ModelSpec(Spec):
    """A model: what it predicts, for whom, from which features, how it is judged and how often.

    An uplift model learns from the `treatment` arm of a `campaign`. A next_category model offers
    the `top` items that a customer buys next; it learns from orders alone, without features.
    """

    name: str
    task: Literal["propensity", "value", "clustering", "uplift", "next_category"]
    description: str
    features: str = ""
    campaign: str | None = None
    treatment: str = "treatment"
    item: Literal["category", "product"] = "category"
    top: PositiveInt = 3
    label: Label = Label()
    population: str = "orders_lifetime >= 1"
    snapshots: Snapshots = Snapshots()
    estimator: dict[str, int | float | str] = {}
    inputs: tuple[str, ...] = ()
    beat_baselines_by: NonNegativeFloat = 0.0
    cadence_days: PositiveInt = 30
    tuning: Tuning | None = None
    segments: dict[str, Cut] = {}

    def question(self) -> str:
        """What it predicts, in words that are the same for the same question."""
        asked = {"task", "label", "treatment", "item"}
        return self.model_dump_json(include=asked)

    @model_validator(mode="after")
    def _value_is_of_orders(self) -> ModelSpec:
        if self.task == "value" and (self.label.event != "order" or not self.label.happens):
            raise ValueError("label: a value model predicts spend: leave out 'event' and 'happens'")
        return self

    @model_validator(mode="after")
    def _task_has_what_it_needs(self) -> ModelSpec:
        for key in sorted(_TAKEN_BY.keys() & self.model_fields_set):
            if self.task not in _TAKEN_BY[key]:
                takers = " or ".join(_TAKEN_BY[key])
                raise ValueError(f"{key}: is for {takers}, not for {self.task}; leave it out")
        if self.task != "next_category" and not self.features:
            raise ValueError("features: is missing: name the feature service to learn from")
        if self.task == "uplift" and self.campaign is None:
            raise ValueError("campaign: is missing: name the campaign to learn from")
        return self


class Comparison(Spec):
    """How a field of two records is compared; kinds as in `cdp_ml.identity.comparisons.KINDS`."""

    field: str
    kind: str
    term_frequency: bool = False


class IdentitySpec(Spec):
    """The linkage model: comparisons, blocking rules, thresholds and deterministic identifiers."""

    comparisons: tuple[Comparison, ...]
    blocking_rules: tuple[str, ...]
    training_rules: tuple[str, ...]
    prior_rules: tuple[str, ...]
    deterministic: tuple[str, ...] = ()
    max_group: PositiveInt = 8
    max_cluster: PositiveInt = 500
    threshold: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    review: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    cadence_days: PositiveInt = 30
    recall: Annotated[float, Field(gt=0.0, le=1.0)] = 0.7
    max_pairs: PositiveInt = 20_000_000
    pairs_per_record: PositiveFloat = 1.2
    contexts: bool = True
    seed: int = 1


AnySpec = TypeVar("AnySpec", bound=BaseModel)


def shipped(name: str) -> Path:
    """A folder that ships with cdp-ml: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).parent
    beside = package.parent / name
    return beside if beside.is_dir() else package / "shipped" / name


def load_settings(home: Path) -> Settings:
    """Read a workspace's cdp.yaml.

    Args:
        home: the workspace folder, or a path to its cdp.yaml.

    Raises:
        ConfigError: if it is absent or wrong; the message names the line.
    """
    path = home if home.suffix in (".yaml", ".yml") else home / "cdp.yaml"
    settings = _load(path, Settings)
    if "home" in load_mapping(path):
        raise ConfigError(f"{path}: home: unknown key; a workspace is the folder of its cdp.yaml")
    return settings.model_copy(update={"home": path.parent.resolve()})


def load_spec(path: Path, spec: type[AnySpec]) -> AnySpec:
    """Read a specification such as models/purchase_30d.yaml.

    Raises:
        ConfigError: if it is absent or wrong; the message names the line.
    """
    return _load(path, spec)


def load_models(settings: Settings) -> dict[str, ModelSpec]:
    """The workspace's model specifications by name, in the order of their files' names.

    Raises:
        ConfigError: if one of them is wrong, or cdp.yaml names one that is not there.
    """
    return {name: _load_model(path) for name, path in _model_files(settings).items()}


def load_model_spec(settings: Settings, name: str) -> ModelSpec:
    """One of the workspace's model specifications, whatever is wrong with the others.

    Raises:
        ConfigError: if it is wrong, or not there; the message names the nearest.
    """
    files = _model_files(settings)
    if name not in files:
        raise ConfigError(f"no model '{name}'; {nearest(name, files)}")
    return _load_model(files[name])


def _model_files(settings: Settings) -> dict[str, Path]:
    folder = settings.share("models")
    for path in folder.glob("*.yml"):
        raise ConfigError(f"{path}: name it {path.stem}.yaml, or it is not read")
    files = {p.stem: p for p in sorted(folder.glob("*.yaml")) if p.stem != "identity"}
    for name, path in files.items():
        if set(name) & set("'\":/"):
            raise ConfigError(f"{path}: a model's name may not hold quotes, colons or slashes")
    chosen = tuple(files) if settings.models is None else settings.models
    for name in chosen:
        if name not in files:
            raise ConfigError(f"models: no '{name}' in {folder}; {nearest(name, files)}")
    return {name: files[name] for name in chosen}


def _load_model(path: Path) -> ModelSpec:
    spec = load_spec(path, ModelSpec)
    if spec.name != path.stem:
        raise ConfigError(f"{path}: name: '{spec.name}', must be the file's: '{path.stem}'")
    return spec


def as_of_instant(settings: Settings, latest: datetime | None) -> datetime:
    """The instant as of which a refresh computes: midnight UTC, from configuration.

    Args:
        settings: its `as_of` is a date, 'now' (today), or 'latest' (the day after the last fact,
            but never later than the coming midnight).
        latest: the time of the latest fact, if any.

    Raises:
        ConfigError: if the date is after tomorrow: what has not happened would count as known.
    """
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if isinstance(settings.as_of, date):
        if settings.as_of > (today + timedelta(days=1)).date():
            raise ConfigError(f"as_of: {settings.as_of} is in the future; tomorrow is the latest")
        return datetime(settings.as_of.year, settings.as_of.month, settings.as_of.day, tzinfo=UTC)
    if settings.as_of == "now" or latest is None:
        return today
    day = latest.replace(hour=0, minute=0, second=0, microsecond=0)
    return min(day, today) + timedelta(days=1)


def load_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds keys and values.

    Raises:
        ConfigError: if it is absent or is no such file; the message names the line.
    """
    return _read(path)[1]


def _load(path: Path, spec: type[AnySpec]) -> AnySpec:
    node, content = _read(path)
    try:
        return spec(**content)
    except ValidationError as error:
        raise ConfigError(_explain(error, path, node, spec)) from None
    except SettingsError as error:
        raise ConfigError(f"environment: {error}: must be JSON, such as '{{}}'") from None


def _read(path: Path) -> tuple[yaml.Node, dict[str, Any]]:
    """The document with its lines, and its content."""
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text)
        content = yaml.safe_load(text)
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{path}: no such file; {_remedy(path)}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 text; save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}{_yaml_place(error)}") from None
    if node is None or not isinstance(content, dict):
        found = "nothing" if content is None else type(content).__name__
        raise ConfigError(f"{path}: must hold 'key: value' lines, holds {found}")
    for key in _repeated_keys(node):
        raise ConfigError(f"{path}:{key.start_mark.line + 1}: '{key.value}' stands twice; keep one")
    return node, content


def _remedy(path: Path) -> str:
    if path.name == "cdp.yaml":
        return "'cdp-ml init DIR' makes a workspace to start from"
    return f"copy the one that ships with cdp-ml: {shipped(path.parent.name) / path.name}"


def _repeated_keys(node: yaml.Node | None) -> Iterator[yaml.ScalarNode]:
    """The keys that stand twice in one mapping; YAML itself would silently take the last."""
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        yield from (k for i, (k, _) in enumerate(node.value) if k.value in keys[:i])
        for _, value in node.value:
            yield from _repeated_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _repeated_keys(value)


def _yaml_place(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    line = f":{mark.line + 1}" if mark else ""
    return f"{line}: not valid YAML: {getattr(error, 'problem', error)}"


def _explain(
    error: ValidationError, path: Path, node: yaml.Node | None, spec: type[BaseModel]
) -> str:
    first = error.errors()[0]
    where = [str(part) for part in first["loc"] if not _is_union_tag(part)]
    hint = first["msg"].removeprefix("Value error, ")
    # A validator over several parts begins its message with the part that is wrong.
    line = _line_of(node, where + hint.partition(": ")[0].split("."))
    if first["type"] == "extra_forbidden":
        hint = f"unknown key; {nearest(where[-1], _valid_keys(spec, where[:-1]))}"
    if first["type"] == "missing":
        hint = "is required and missing"
    place = _variable(where) if issubclass(spec, BaseSettings) else None
    place = place or (f"{path}:{line}" if line else f"{path} or environment")
    others = error.error_count() - 1
    return f"{place}: {'.'.join(where)}: {hint}" + (f" (and {others} more)" if others else "")


def _variable(where: list[str]) -> str | None:
    """The environment variable that sets a value or a part of it, if there is one."""
    names = ["CDP_" + "__".join(where[:n]).upper() for n in range(len(where), 0, -1)]
    return next((f"environment variable {name}" for name in names if name in os.environ), None)


def located(message: str, settings: Settings) -> str:
    """Put the file and line before a message that begins with a place in a specification.

    Args:
        message: such as "segments.vip.where: ..." (of cdp.yaml) or
            "models/churn_90d.yaml: population: ...".
        settings: of the workspace.

    Returns:
        The message with the place as `path:line`; as it was if it begins with no such place.
    """
    file, _, rest = message.partition(": ")
    path, inside = settings.home / "cdp.yaml", message
    if file.startswith("models/") and file.endswith(".yaml"):
        path, inside = settings.share("models") / file.removeprefix("models/"), rest
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return message
    where = inside.partition(": ")[0].split(".")
    keys = [k.value for k, _ in node.value] if isinstance(node, yaml.MappingNode) else []
    return f"{path}:{_line_of(node, where)}: {inside}" if where[0] in keys else message


def _is_union_tag(part: int | str) -> bool:
    return isinstance(part, str) and (part in ("str", "FieldMap", "date") or part.endswith("]"))


def _line_of(node: yaml.Node | None, where: list[str]) -> int | None:
    """The line of the deepest part of `where` that the document has."""
    line = None if node is None else node.start_mark.line + 1
    for part in where:
        found = None
        if isinstance(node, yaml.MappingNode):
            found = next((pair for pair in node.value if pair[0].value == part), None)
        elif isinstance(node, yaml.SequenceNode) and part.isdigit():
            item = node.value[int(part)]
            found = (item, item)
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return line


def _valid_keys(spec: type[BaseModel], where: list[str]) -> list[str]:
    """The keys that are valid at `where` within `spec`."""
    current: type[BaseModel] | None = spec
    for part in where:
        if current is not None and part in current.model_fields:
            current = _nested(current.model_fields[part].annotation)
    return [] if current is None else [k for k in current.model_fields if k != "home"]


def _nested(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_nested(argument) for argument in get_args(annotation))
    return next((spec for spec in found if spec is not None), None)


def environment_home() -> Path:
    """The workspace folder: `CDP_WORKSPACE`, or the current folder."""
    return Path(os.environ.get("CDP_WORKSPACE", "."))
