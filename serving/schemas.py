"""What the API takes and gives, as its OpenAPI page shows it."""

from datetime import date, datetime

from pydantic import BaseModel, ConfigDict, Field, JsonValue

CUSTOMER = "c3f2a8d0b9e4c4f0e"
NULLABLE: dict[str, JsonValue] = {"nullable": True}
"""For fields that may be null: BentoML drops that from a union's schema."""


class Request(BaseModel):
    """A request body; unknown keys are refused, and values never reach a message or a log."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class CustomerRequest(Request):
    """Whom to look up."""

    model_config = ConfigDict(json_schema_extra={"example": {"customer_id": CUSTOMER}})

    customer_id: str = Field(min_length=1, max_length=200, description="our id of the customer")


class ScoreRequest(CustomerRequest):
    """Whom to score, with which model."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"customer_id": CUSTOMER, "model": "purchase_30d"}}
    )

    model: str = Field(min_length=1, max_length=200, description="a name that /models lists")
    reasons: bool = Field(True, description="also say which features moved the score most")


class ResolveRequest(Request):
    """Who might this be: what is known of the person, as a source would deliver it."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"given_name": "Ada", "surname": "Byron", "email": "ada@example.org"}
        }
    )

    given_name: str | None = Field(None, max_length=1000, json_schema_extra=NULLABLE)
    surname: str | None = Field(None, max_length=1000, json_schema_extra=NULLABLE)
    email: str | None = Field(None, max_length=1000, json_schema_extra=NULLABLE)
    phone: str | None = Field(None, max_length=1000, json_schema_extra=NULLABLE)
    birth_date: str | None = Field(
        None, max_length=1000, description="such as 1985-02-28", json_schema_extra=NULLABLE
    )
    street: str | None = Field(None, max_length=1000, json_schema_extra=NULLABLE)
    postcode: str | None = Field(None, max_length=1000, json_schema_extra=NULLABLE)
    city: str | None = Field(None, max_length=1000, json_schema_extra=NULLABLE)
    country: str | None = Field(None, max_length=1000, json_schema_extra=NULLABLE)


class Empty(Request):
    """Nothing needs to be said: send {}."""

    model_config = ConfigDict(json_schema_extra={"example": {}})


class Reason(BaseModel):
    """A feature that moved the score."""

    feature: str = Field(description="name of the feature")
    value: float | str | bool | None = Field(
        description="the customer's value; null if unknown", json_schema_extra=NULLABLE
    )
    contribution: float = Field(description="how far it moved the score, in the model's own unit")
    meaning: str = Field(description="what the feature says, with its unit")


class ScoreResponse(BaseModel):
    """A customer's score by a model's champion."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "customer_id": CUSTOMER,
                "model": "purchase_30d",
                "model_version": 3,
                "as_of": "2026-07-01T00:00:00Z",
                "score": 0.71,
                "percentile": 0.96,
                "cluster": None,
                "in_population": True,
                "reasons": [
                    {
                        "feature": "orders_90d",
                        "value": 7,
                        "contribution": 0.56,
                        "meaning": "orders within 90 days [orders]",
                    }
                ],
            }
        }
    )

    customer_id: str = Field(description="our id of the customer")
    model: str = Field(description="name of the model")
    model_version: int = Field(description="the champion's version in the registry")
    as_of: datetime = Field(description="the instant of the features, UTC")
    score: float = Field(description="probability, spend, or distance to the cluster's center")
    percentile: float | None = Field(
        description="share of scored customers below, 0 to 1", json_schema_extra=NULLABLE
    )
    cluster: str | None = Field(
        description="name of the cluster; null unless the model clusters",
        json_schema_extra=NULLABLE,
    )
    in_population: bool = Field(description="whether the model was made for customers like this")
    reasons: list[Reason] = Field(description="what moved the score, the weightiest first")


class FieldValue(BaseModel):
    """A field of the golden record."""

    value: str | date = Field(description="the surviving value")
    source: str | None = Field(
        description="the source that it was taken from", json_schema_extra=NULLABLE
    )


class ProfileResponse(BaseModel):
    """A customer's golden record."""

    customer_id: str = Field(description="our id of the customer")
    as_of: datetime = Field(description="the instant of the run that unified it, UTC")
    fields: dict[str, FieldValue] = Field(description="what is known, by name")
    records: int | None = Field(
        description="how many records of the sources it unifies", json_schema_extra=NULLABLE
    )
    sources: list[str] = Field(description="the sources of these records")
    identity_confidence: float | None = Field(
        description="probability of the weakest link", json_schema_extra=NULLABLE
    )
    first_seen_at: datetime | None = Field(
        description="earliest record, UTC", json_schema_extra=NULLABLE
    )
    last_seen_at: datetime | None = Field(
        description="latest change of a record, UTC", json_schema_extra=NULLABLE
    )


class Stay(BaseModel):
    """A segment that the customer is in."""

    segment: str = Field(description="name of the segment")
    entered_at: datetime = Field(description="first refresh that found the customer inside, UTC")


class SegmentsResponse(BaseModel):
    """The segments that a customer is in."""

    customer_id: str = Field(description="our id of the customer")
    as_of: datetime = Field(description="the instant of the run, UTC")
    segments: list[Stay] = Field(description="by name")


class Candidate(BaseModel):
    """A record that might be the person's."""

    source: str = Field(description="the record's source")
    source_record_id: str = Field(description="its id there")
    customer_id: str | None = Field(description="whose record it is", json_schema_extra=NULLABLE)
    match_weight: float = Field(description="how much speaks for it, in bits")
    match_probability: float = Field(description="how likely it is, 0 to 1")
    evidence: str = Field(description="how the fields agree, such as 'email: exact'")


class ResolveResponse(BaseModel):
    """Who the person might be."""

    as_of: datetime = Field(description="the instant of the run, UTC")
    candidates: list[Candidate] = Field(description="the best first; none: nobody known")


class ModelEntry(BaseModel):
    """A model that can be asked."""

    model: str = Field(description="name of the model")
    task: str = Field(description="propensity, value or clustering")
    description: str = Field(description="what it predicts")
    version: int | None = Field(
        description="the champion's version; null: none was promoted yet",
        json_schema_extra=NULLABLE,
    )


class ModelsResponse(BaseModel):
    """The models of the workspace."""

    models: list[ModelEntry] = Field(description="in the order of their files' names")


class StatusResponse(BaseModel):
    """Which published run answers."""

    run_id: str = Field(description="the refresh that published")
    as_of: datetime = Field(description="the instant as of which it computed, UTC")
    published_at: datetime = Field(description="when it was published, UTC")


class ErrorResponse(BaseModel):
    """Why there is no answer."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "error": "ConfigError",
                "message": "no model 'purchase_3d'; did you mean 'purchase_30d'?",
            }
        }
    )

    error: str = Field(description="kind of error, such as UnknownCustomerError")
    message: str = Field(description="what is wrong and what to do")
