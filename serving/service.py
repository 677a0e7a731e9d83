"""The HTTP API: `cdp_ml.online` behind BentoML, with typed requests, answers and errors.

It serves the workspace that `CDP_WORKSPACE` names (else the current folder), and takes up a new
publication within seconds. Bodies hold personal data; logs hold paths, counts and kinds of errors.
"""

import functools
import inspect
import json
import logging
import os
import traceback
from collections.abc import Callable, Mapping
from typing import Any

os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")  # read when BentoML starts to serve

import bentoml
from _bentoml_sdk import Service
from attrs import evolve
from bentoml._internal.service.openapi.specification import Info, Schema, Tag
from pydantic import ValidationError
from schemas import (
    CustomerRequest,
    Empty,
    ErrorResponse,
    ModelsResponse,
    ProfileResponse,
    ResolveRequest,
    ResolveResponse,
    ScoreRequest,
    ScoreResponse,
    SegmentsResponse,
    StatusResponse,
)
from starlette.responses import JSONResponse

from cdp_ml import __version__, online
from cdp_ml.config import environment_home, load_settings
from cdp_ml.errors import CdpError, ConfigError, LinkageError, NotPromotedError

logger = logging.getLogger("bentoml.cdp_ml")

STATUS: Mapping[type[CdpError], int] = {
    online.UnknownCustomerError: 404,
    ConfigError: 404,
    NotPromotedError: 409,
    LinkageError: 409,
    online.NothingPublishedError: 503,
}
"""The HTTP status of each kind of error; 500 is a defect of ours."""

# BentoML's page at `/` would load Google Tag Manager and badges; a browser obeys this instead.
POLICY = b"default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:"


NOT_JSON = "send a JSON body with the header 'Content-Type: application/json'"


def refusal(error: str, message: str, status: int) -> JSONResponse:
    """An error as the API says it: its kind, and what is wrong and what to do."""
    return JSONResponse(ErrorResponse(error=error, message=message).model_dump(), status)


def answering(method: Callable[..., Any]) -> Callable[..., Any]:
    """Turn what goes wrong into an answer, without personal data in the log."""

    @functools.wraps(method)
    def answer(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except CdpError as error:
            status = next((s for kind, s in STATUS.items() if isinstance(error, kind)), 500)
            return refusal(type(error).__name__, str(error), status)
        except Exception as error:
            # The message of an unforeseen error may quote data: only its kind and place are told.
            place = "".join(traceback.format_tb(error.__traceback__))
            logger.error("%s in %s\n%s", type(error).__name__, method.__name__, place)
            return refusal("InternalError", "unforeseen; the server's log says where", 500)

    return answer


class Manners:
    """ASGI middleware: refused requests get the API's error form; browsers load nothing foreign."""

    def __init__(self, app: Callable[..., Any]) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass everything through, but for the headers and for the bodies of 400."""
        refused: dict[str, Any] = {}
        if scope["type"] == "http" and scope["method"] == "POST" and not _is_json(scope):
            await refusal("InvalidRequest", NOT_JSON, 400)(scope, receive, send)
            return

        async def polite(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), (b"content-security-policy", POLICY)]
                message = {**message, "headers": headers}
                if message["status"] == 400:
                    refused.update(message)
                    return
            elif refused:
                answer = refusal("InvalidRequest", _refusals(message["body"]), 400)
                kept = [h for h in refused["headers"] if h[0].lower() != b"content-length"]
                size = (b"content-length", str(len(answer.body)).encode())
                await send({**refused, "headers": [*kept, size]})
                message = {**message, "body": answer.body}
            await send(message)

        await self.app(scope, receive, polite if scope["type"] == "http" else send)


def _is_json(scope: Any) -> bool:
    """Whether a request says that its body is JSON; BentoML would take others for form fields."""
    content = dict(scope["headers"]).get(b"content-type", b"")
    return bool(content.partition(b";")[0].strip().lower() == b"application/json")


def _refusals(body: bytes) -> str:
    """What BentoML says is wrong with a request, as one line."""
    said = json.loads(body)
    if isinstance(said, list):
        return "; ".join(str(part.get("error")) for part in said)
    details = said.get("detail", ())
    return (
        "; ".join(f"{'.'.join(map(str, d['loc']))}: {d['msg']}" for d in details) or said["error"]
    )


def _without_traceback(record: logging.LogRecord) -> bool:
    """Log a refused request as one line: it is the caller's mistake, not ours."""
    if record.exc_info and isinstance(record.exc_info[1], ValidationError):
        record.msg, record.args, record.exc_info = "refused a request: not valid", (), None
        record.levelno, record.levelname = logging.WARNING, "WARNING"
    return True


def _configure_logging() -> None:
    """Write our messages into BentoML's log, and refused requests without a traceback."""
    logging.getLogger("cdp_ml").parent = logging.getLogger("bentoml")
    logging.getLogger("bentoml._internal.server.http_app").addFilter(_without_traceback)


ERRORS: Mapping[int, str] = {
    400: "The request is not valid",
    404: "There is no such customer, or no such model",
    409: "The model has no champion yet, or the run no linkage model",
    500: "A defect of ours; the server's log says where",
    503: "Nothing is published yet",
}
"""What the API answers when it has no answer, by status."""

ABOUT = {
    "Service APIs": "What an application asks",
    "Infrastructure": "What an operator asks: alive, ready, metrics for Prometheus",
}
"""The parts of the OpenAPI page, by the names that BentoML gives them."""


class Documented(Service):
    """A BentoML service whose OpenAPI page tells of itself and of the errors that it gives."""

    @property
    def doc(self) -> str:
        """The text at the head of the page, with the title that BentoML's style sheet hides."""
        return "# cdp-ml\n\n" + inspect.cleandoc(self.inner.__doc__ or "")

    @property
    def openapi_spec(self) -> Any:
        """BentoML's specification, with our name, and with the errors that the API really gives."""
        spec = super().openapi_spec
        schemas = spec.components["schemas"]
        for name in ("InvalidArgument", "NotFound", "InternalServerError", "TaskStatusResponse"):
            schemas.pop(name, None)  # of BentoML, whose errors and tasks this API does not have
        schemas["Error"] = Schema(**{**ErrorResponse.model_json_schema(), "title": "Error"})
        for method in self.apis.values():
            _document(spec.paths[method.route].post)
        info = Info(title="cdp-ml", version=__version__, description=self.doc)
        tags = [Tag(name=name, description=about) for name, about in ABOUT.items()]
        return evolve(spec, info=info, tags=tags)


def _document(operation: dict[str, Any]) -> None:
    """Show what a method does beside its path, and the errors of ours that it can answer with."""
    operation["summary"] = operation.pop("description")
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    errors = {s: {"description": meaning, "content": content} for s, meaning in ERRORS.items()}
    operation["responses"] = {200: operation["responses"][200], **errors}


@bentoml.service(
    name="cdp_ml",
    service_class=Documented,
    workers=1,
    threads=4,
    traffic={"timeout": 10},
)
class CdpService:
    """Scores, profiles and segments of customers, all from the last published refresh.

    Every call is a POST with a JSON body. Errors are `{"error": kind, "message": what to do}`:
    400 for an invalid request, 404 for an unknown customer or model, 409 for a model without a
    champion, 503 while nothing is published.
    """

    def __init__(self) -> None:
        _configure_logging()
        self.latest = online.Latest(load_settings(environment_home()))
        self.latest.watch()

    def __is_ready__(self) -> bool:
        return self.latest.ready

    @bentoml.api(input_spec=ScoreRequest)
    @answering
    def score(self, customer_id: str, model: str, reasons: bool = True) -> ScoreResponse:
        """Score a customer with a model's champion, and say why."""
        found = online.score(self.latest.online(), customer_id, model, reasons)
        return ScoreResponse(**found)

    @bentoml.api(input_spec=CustomerRequest)
    @answering
    def profile(self, customer_id: str) -> ProfileResponse:
        """A customer's golden record, each field with its source."""
        return ProfileResponse(**online.profile(self.latest.online(), customer_id))

    @bentoml.api(input_spec=CustomerRequest)
    @answering
    def segments(self, customer_id: str) -> SegmentsResponse:
        """The segments that a customer is in, and since when."""
        run = self.latest.online()
        stays = online.segments(run, customer_id)
        current = online.current_id(run, customer_id)
        return SegmentsResponse(customer_id=current, as_of=run.as_of, segments=stays)

    @bentoml.api(input_spec=ResolveRequest)
    @answering
    def resolve(self, **person: str | None) -> ResolveResponse:
        """Find the records, and customers, that a person might be; nothing is kept."""
        run = self.latest.online()
        return ResolveResponse(as_of=run.as_of, candidates=online.resolve(run, person))

    @bentoml.api(input_spec=Empty)
    @answering
    def models(self) -> ModelsResponse:
        """The models that can be asked, with the version of their champion."""
        return ModelsResponse(models=online.models(self.latest.online()))

    @bentoml.api(input_spec=Empty)
    @answering
    def status(self) -> StatusResponse:
        """Which published run answers."""
        run = self.latest.online()
        return StatusResponse(run_id=run.run_id, as_of=run.as_of, published_at=run.published_at)


CdpService.add_asgi_middleware(Manners)
