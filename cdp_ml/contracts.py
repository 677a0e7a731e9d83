"""The data dictionary as code: every table's key, columns, types, meaning and personal-data class.

`TABLES` is the truth; the lake refuses to write what does not conform. Tables marked `open` carry
further columns that are defined where they are computed (traits in `cdp_ml.traits.TRAITS`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from cdp_ml.errors import ContractError, nearest

if TYPE_CHECKING:
    import pyarrow as pa

Type = Literal["string", "int64", "float64", "boolean", "timestamp", "date"]
Personal = Literal["none", "pseudonym", "direct"]


@dataclass(frozen=True)
class Column:
    """A column: its type, what it means, its unit, and how personal it is.

    `direct` identifies a person by itself (name, e-mail); `pseudonym` does so through a table of
    ours (customer_id, cookie); `none` does not.
    """

    name: str
    type: Type
    meaning: str
    unit: str = ""
    personal: Personal = "none"


@dataclass(frozen=True)
class Table:
    """A table of the lake: what one row is, its key and its columns.

    Of the columns in `first` a row keeps the earliest value when it changes: a corrected fact has
    been known since it was first delivered.
    """

    name: str
    row: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    purpose: str = "operations"
    retention: str = "as long as the source delivers the person"
    open: bool = False
    first: tuple[str, ...] = ()

    @property
    def column_names(self) -> tuple[str, ...]:
        """The names of the declared columns, in order."""
        return tuple(c.name for c in self.columns)


_SOURCE = Column("source", "string", "name of the source in cdp.yaml")
_RECORD = Column("source_record_id", "string", "the source's own id of the record", "", "pseudonym")
_EVENT_TIME = Column("event_timestamp", "timestamp", "when it was true", "UTC")
_INGESTED = Column("ingested_at", "timestamp", "when it became known", "UTC")
_CUSTOMER = Column("customer_id", "string", "our id of the unified customer", "", "pseudonym")
_ID_TYPE = Column("identifier_type", "string", "a people source's name, 'cookie', or another kind")
_ID = Column("identifier", "string", "the identifier itself", "", "pseudonym")
_RUN = Column("run_id", "string", "the refresh that wrote the row")

_PERSON = (
    Column("given_name", "string", "given name, standardized", "", "direct"),
    Column("surname", "string", "family name, standardized", "", "direct"),
    Column("email", "string", "e-mail address, standardized; null if invalid", "", "direct"),
    Column("phone", "string", "phone number, E.164; null if invalid", "", "direct"),
    Column("birth_date", "date", "date of birth; null if implausible", "", "direct"),
    Column("street", "string", "street and house number, standardized", "", "direct"),
    Column("postcode", "string", "postcode, standardized", "", "direct"),
    Column("city", "string", "city, standardized", "", "direct"),
    Column("country", "string", "country as the source gives it"),
)
PERSON_FIELDS: tuple[str, ...] = tuple(c.name for c in _PERSON)
"""What a person record can say about a person; survivorship chooses among these."""

_RAW = tuple(
    Column(f"{c.name}_raw", "string", f"{c.name} as delivered", "", "direct") for c in _PERSON
)
_TRAIT_KEY = (
    _CUSTOMER,
    Column("event_timestamp", "timestamp", "the instant as of which the traits hold", "UTC"),
)


def _tables(*tables: Table) -> dict[str, Table]:
    """The tables by name; whatever has a time of ingestion keeps the first."""
    known = ((t, ("ingested_at",) if "ingested_at" in t.column_names else ()) for t in tables)
    return {t.name: replace(t, first=(*t.first, *first)) for t, first in known}


TABLES: dict[str, Table] = _tables(
    Table(
        "records",
        "a person record of one source, standardized beside raw",
        ("source", "source_record_id"),
        (
            _SOURCE,
            _RECORD,
            *_PERSON,
            *_RAW,
            Column("flags", "string", "comma-separated findings, such as birth_date_implausible"),
            Column("event_timestamp", "timestamp", "when the source last changed it", "UTC"),
            _INGESTED,
        ),
        purpose="identity",
    ),
    Table(
        "identifiers",
        "a cookie, login, card or other identifier seen for a record",
        ("identifier_type", "identifier", "source", "source_record_id"),
        (_ID_TYPE, _ID, _SOURCE, _RECORD, _EVENT_TIME, _INGESTED),
        purpose="identity",
        first=("event_timestamp",),
    ),
    Table(
        "edges",
        "evidence that two records are one person",
        ("record_l", "record_r"),
        (
            Column("record_l", "string", "source:source_record_id, the lesser", "", "pseudonym"),
            Column("record_r", "string", "source:source_record_id, the greater", "", "pseudonym"),
            Column("kind", "string", "deterministic, probabilistic, must-link or cannot-link"),
            Column("match_weight", "float64", "Splink's match weight", "bits"),
            Column("match_probability", "float64", "Splink's match probability"),
            Column("evidence", "string", "what the edge rests on"),
            Column("actor", "string", "who says so: 'refresh' or a person"),
            Column("known_at", "timestamp", "when it became known", "UTC"),
        ),
        purpose="identity",
        first=("known_at",),
    ),
    Table(
        "compared",
        "a record as it was last compared with others",
        ("source", "source_record_id"),
        (_SOURCE, _RECORD, Column("fingerprint", "int64", "hash of what was compared")),
        purpose="identity",
    ),
    Table(
        "reviews",
        "two records of different customers that might be one person, for people to decide",
        ("record_l", "record_r"),
        (
            Column("record_l", "string", "source:source_record_id, the lesser", "", "pseudonym"),
            Column("record_r", "string", "source:source_record_id, the greater", "", "pseudonym"),
            Column(
                "reason",
                "string",
                "uncertain, outvoted (by the other records of the two), bridge (the only link of "
                "two groups) or conflict (of an identifier with what else is known)",
            ),
            Column("match_weight", "float64", "Splink's match weight", "bits"),
            Column("match_probability", "float64", "Splink's match probability"),
            Column("evidence", "string", "what speaks for it"),
            Column("known_at", "timestamp", "when it became known", "UTC"),
        ),
        purpose="identity",
        first=("known_at",),
    ),
    Table(
        "overrides",
        "what a person decided about two records",
        ("override_id", "record_l", "record_r"),
        (
            Column("override_id", "string", "the decision; one may concern several pairs"),
            Column("record_l", "string", "source:source_record_id, the lesser", "", "pseudonym"),
            Column("record_r", "string", "source:source_record_id, the greater", "", "pseudonym"),
            Column("decision", "string", "must-link or cannot-link"),
            Column("actor", "string", "who decided"),
            Column("reason", "string", "why"),
            _EVENT_TIME,
            Column("undone_at", "timestamp", "when it was taken back; null: it holds", "UTC"),
            Column("undone_by", "string", "who took it back"),
        ),
        purpose="identity",
        retention="as long as the records it concerns",
    ),
    Table(
        "crosswalk",
        "a record's customer over time",
        ("source", "source_record_id", "valid_from"),
        (
            _SOURCE,
            _RECORD,
            _CUSTOMER,
            Column("confidence", "float64", "weakest link its customer needs", "probability"),
            Column("valid_from", "timestamp", "when the link became known", "UTC"),
            Column("valid_to", "timestamp", "when it ceased to hold; null: it holds", "UTC"),
        ),
        purpose="identity",
    ),
    Table(
        "identity_log",
        "a creation, merge, split or retirement of a customer id",
        ("event_id",),
        (
            Column("event_id", "string", "id of the log entry"),
            Column("event", "string", "created, merged, split or retired"),
            _CUSTOMER,
            Column("into_customer_id", "string", "the survivor of a merge", "", "pseudonym"),
            Column("reason", "string", "why"),
            Column("actor", "string", "who: 'refresh' or a person"),
            _EVENT_TIME,
        ),
        purpose="identity",
    ),
    Table(
        "customers",
        "the golden record, each field with its source",
        ("customer_id",),
        (
            _CUSTOMER,
            *_PERSON,
            *(Column(f"{c.name}_source", "string", f"whose {c.name} it is") for c in _PERSON),
            Column("records", "int64", "records unified in it", "records"),
            Column("sources", "string", "comma-separated names of their sources"),
            Column("identity_confidence", "float64", "weakest link that holds it", "probability"),
            Column("first_seen_at", "timestamp", "earliest record", "UTC"),
            Column("last_seen_at", "timestamp", "latest change of a record", "UTC"),
        ),
        purpose="profile",
    ),
    Table(
        "consents",
        "a grant or withdrawal by purpose",
        ("source", "source_record_id", "purpose", "event_timestamp"),
        (
            Column("source", "string", "the people source whose record it concerns"),
            _RECORD,
            Column("purpose", "string", "what for, such as marketing"),
            Column("granted", "boolean", "true: granted; false: withdrawn"),
            _EVENT_TIME,
            _INGESTED,
        ),
        purpose="consent",
    ),
    Table(
        "events",
        "a behavioural event",
        ("event_id",),
        (
            Column("event_id", "string", "source:id of the event"),
            _SOURCE,
            _ID_TYPE,
            _ID,
            Column("event_type", "string", "such as product_view, cart_add, email_opened"),
            Column("product_id", "string", "product concerned, if any"),
            Column("category", "string", "product category concerned, if any"),
            Column("channel", "string", "such as web or email"),
            Column("campaign", "string", "campaign concerned, if any"),
            _EVENT_TIME,
            _INGESTED,
        ),
        purpose="analytics",
    ),
    Table(
        "transactions",
        "an order line; a negative quantity is a return",
        ("order_id", "line_no"),
        (
            Column("order_id", "string", "source:id of the order"),
            Column("line_no", "int64", "line within the order"),
            _SOURCE,
            _ID_TYPE,
            _ID,
            Column("product_id", "string", "product"),
            Column("quantity", "float64", "pieces; negative: returned", "pieces"),
            Column("unit_price", "float64", "price of a piece before discount", "currency"),
            Column("discount", "float64", "share of the price taken off", "0 to 1"),
            Column("channel", "string", "such as web or store"),
            _EVENT_TIME,
            _INGESTED,
        ),
        purpose="analytics",
    ),
    Table(
        "products",
        "a product and its category",
        ("product_id",),
        (
            Column("product_id", "string", "product"),
            Column("name", "string", "its name"),
            Column("category", "string", "its category"),
            Column("price", "float64", "list price", "currency"),
            _INGESTED,
        ),
    ),
    Table(
        "exposures",
        "a person in an arm of a campaign",
        ("campaign_id", "identifier_type", "identifier"),
        (
            Column("campaign_id", "string", "campaign"),
            _ID_TYPE,
            _ID,
            Column("arm", "string", "such as treatment or control"),
            _EVENT_TIME,
            _INGESTED,
        ),
        purpose="analytics",
    ),
    *(
        Table(
            f"traits_{group}",
            meaning,
            ("customer_id", "event_timestamp"),
            _TRAIT_KEY,
            purpose="profiling",
            open=True,
        )
        for group, meaning in (
            ("transactional", "a customer's orders, spend and returns as of an instant"),
            ("behavioral", "a customer's visits and e-mail engagement as of an instant"),
            ("profile", "a customer's profile as of an instant"),
        )
    ),
    Table(
        "labels",
        "an outcome after an instant (a table `labels_<model>` for each model)",
        ("customer_id", "event_timestamp"),
        (
            *_TRAIT_KEY,
            Column("label", "float64", "the outcome: 1 it happened, 0 it did not; or spend"),
        ),
        purpose="profiling",
    ),
    Table(
        "scores",
        "a model's prediction for a customer",
        ("model", "customer_id", "as_of"),
        (
            Column("model", "string", "name of the model"),
            Column("model_version", "int64", "its version in the registry"),
            _CUSTOMER,
            Column("as_of", "timestamp", "the instant of the features", "UTC"),
            Column(
                "score",
                "float64",
                "probability, spend, uplift (probability gained by treatment), or distance to the "
                "cluster's center",
            ),
            Column("percentile", "float64", "share of customers with a lower score", "0 to 1"),
            Column("cluster", "string", "name of the cluster, for clustering models"),
        ),
        purpose="profiling",
    ),
    Table(
        "recommendations",
        "a category or product that a customer probably buys next",
        ("model", "customer_id", "as_of", "rank"),
        (
            Column("model", "string", "name of the model"),
            Column("model_version", "int64", "its version in the registry"),
            _CUSTOMER,
            Column("as_of", "timestamp", "the instant before which orders count", "UTC"),
            Column("item", "string", "the category or product"),
            Column("rank", "int64", "its place among the customer's items, from 1"),
            Column("score", "float64", "probability to buy it, of who buys at all in 30 days"),
            Column("bought_before", "boolean", "whether the customer has bought it before"),
        ),
        purpose="profiling",
    ),
    Table(
        "segment_membership",
        "a customer's stay in a segment",
        ("segment", "customer_id", "entered_at"),
        (
            Column("segment", "string", "name of the segment"),
            _CUSTOMER,
            Column("entered_at", "timestamp", "first refresh that found it inside", "UTC"),
            Column("exited_at", "timestamp", "first refresh that found it outside", "UTC"),
        ),
        purpose="profiling",
    ),
    Table(
        "rejects",
        "a refused row",
        ("source", "file", "position"),
        (
            _SOURCE,
            Column("file", "string", "file or database table of the row"),
            Column("position", "int64", "line of a text file, else row, from 1"),
            Column("reason", "string", "why it was refused"),
            Column("row", "string", "the row as delivered, JSON", "", "direct"),
            _INGESTED,
        ),
    ),
    Table(
        "metrics",
        "a measurement of a run",
        ("run_id", "step", "name", "subject"),
        (
            _RUN,
            Column("step", "string", "step that measured"),
            Column("name", "string", "what was measured"),
            Column("subject", "string", "of which source, model or segment"),
            Column("value", "float64", "the measurement"),
            _EVENT_TIME,
        ),
    ),
    Table(
        "runs",
        "a published run: the versions that readers see",
        ("run_id",),
        (
            _RUN,
            Column("as_of", "timestamp", "the instant as of which it computed", "UTC"),
            Column("started_at", "timestamp", "when it began", "UTC"),
            Column("published_at", "timestamp", "when readers began to see it", "UTC"),
            Column("versions", "string", "JSON: version of each table, model and store"),
            Column("summary", "string", "JSON: what each step reported"),
        ),
    ),
)


TRAIT_TABLES: tuple[str, ...] = tuple(name for name, table in TABLES.items() if table.open)
"""The tables of traits, one a group."""


def table_of(kind: str) -> str:
    """The table that holds the rows of a kind of source."""
    return "records" if kind == "people" else kind


def contract(name: str) -> Table:
    """Return the contract of a table.

    Args:
        name: a table's name; `labels_<model>` has the contract of `labels`.

    Raises:
        ContractError: if there is no such table.
    """
    if name.startswith("labels_"):
        return replace(TABLES["labels"], name=name)
    if name not in TABLES:
        raise ContractError(f"no table '{name}'; {nearest(name, TABLES)}")
    return TABLES[name]


def arrow_type(type_: Type) -> pa.DataType:
    """The Arrow type in which the lake stores a contract's type."""
    import pyarrow as pa

    timestamp = pa.timestamp("us", tz="UTC")
    types = {"int64": pa.int64(), "float64": pa.float64(), "boolean": pa.bool_()}
    return {"string": pa.string(), "timestamp": timestamp, "date": pa.date32(), **types}[type_]


def arrow_schema(name: str) -> pa.Schema:
    """The Arrow schema of a table's declared columns."""
    import pyarrow as pa

    return pa.schema([(c.name, arrow_type(c.type)) for c in contract(name).columns])
