"""The service as a process: how BentoML is started on a workspace, asked, and stopped."""

from __future__ import annotations

import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cdp_ml.config import Settings
from cdp_ml.errors import CdpError, ConfigError, NotPromotedError


def serve_command(settings: Settings, host: str, port: int) -> tuple[list[str], dict[str, str]]:
    """The command that serves a workspace with BentoML, and its environment.

    Args:
        settings: of the workspace.
        host: IP address to listen on; 127.0.0.1 keeps the API, which asks nobody who they are, on
            this machine.
        port: to listen on.

    Raises:
        ConfigError: if the host is not an IP address of this machine, or the port is taken.
    """
    check_address(host, port)
    command = [sys.executable, "-m", "bentoml", "serve", str(settings.share("serving"))]
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    environment = {
        **os.environ,
        "CDP_WORKSPACE": str(settings.home),
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": str(settings.data / "bentoml"),
        # BentoML's worker runs in the serving folder.
        "PYTHONPATH": os.pathsep.join(os.path.abspath(p) for p in paths if p),
    }
    return [*command, "--host", host, "--port", str(port)], environment


def check_service(settings: Settings, port: int | None = None) -> dict[str, Any]:
    """Start the service, ask it for one score over HTTP, and stop it.

    Args:
        settings: of a workspace with a published run.
        port: to listen on; a free one by default.

    Returns:
        What the service answers to a request for a score with reasons.

    Raises:
        NothingPublishedError: if no refresh has published yet.
        NotPromotedError: if no model has scored anybody.
        CdpError: if the service does not start or does not answer; the message ends with its log.
    """
    customer_id, model = _somebody(settings)
    with running_service(settings, port) as url:
        return ask(url, "score", customer_id=customer_id, model=model)


def ask(url: str, method: str, **request: Any) -> dict[str, Any]:
    """Ask a running service over HTTP.

    Args:
        url: of the service.
        method: of its API, such as 'score'.
        request: the JSON body.

    Raises:
        urllib.error.HTTPError: if it answers with an error.
    """
    body = json.dumps(request).encode()
    headers = {"Content-Type": "application/json"}
    asked = urllib.request.Request(f"{url}/{method}", body, headers, method="POST")
    with urllib.request.urlopen(asked, timeout=30) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


@contextmanager
def running_service(
    settings: Settings,
    port: int | None = None,
    until: str = "readyz",
    log: Path | None = None,
    timeout: float = 90.0,
) -> Iterator[str]:
    """Run the service while the context lasts; it ends with it, whatever happens.

    Args:
        settings: of the workspace.
        port: to listen on; a free one by default.
        until: what to wait for: 'readyz' (a run is open) or 'livez' (it listens).
        log: file for its log; a temporary one by default.
        timeout: seconds to wait.

    Yields:
        Its URL.

    Raises:
        CdpError: if that does not come about; the message ends with the log.
    """
    port = port or _free_port()
    url = f"http://127.0.0.1:{port}"
    command, environment = serve_command(settings, "127.0.0.1", port)
    # A folder of its own: BentoML empties the folder of metrics that a running service writes to.
    with tempfile.TemporaryDirectory(prefix="cdp-ml-") as home, _exit_on_sigterm():
        log = log or Path(home) / "service.log"
        process = _start(command, {**environment, "BENTOML_HOME": home}, log)
        try:
            _wait(process, f"{url}/{until}", log, timeout)
            yield url
        finally:
            _stop(process)


def check_address(host: str, port: int) -> None:
    """Find out whether a server can listen, before it starts.

    Args:
        host: IP address to listen on.
        port: to listen on.

    Raises:
        ConfigError: if the host is not an IP address of this machine, or the port is taken.
    """
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except ValueError:
        raise ConfigError(f"host '{host}': not an IP address, such as 127.0.0.1") from None
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another port or address"
        ) from None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _somebody(settings: Settings) -> tuple[str, str]:
    """A customer and a model that scored the customer in the published run."""
    from cdp_ml.engine import connect
    from cdp_ml.lake import Lake, published_run
    from cdp_ml.online import models_of

    run = published_run(settings.lake)
    scores = Lake(settings.lake, run["versions"]).read("scores", connect(settings.engine))
    scores = scores.filter(scores.as_of == run["as_of"])
    anybody = scores.group_by("model").aggregate(customer_id=scores.customer_id.min())
    scored = {r["model"]: r["customer_id"] for r in anybody.to_pyarrow().to_pylist()}
    # A propensity first: its answer has reasons to show.
    specs = models_of(run)
    for name in sorted(scored, key=lambda name: (specs[name]["task"] != "propensity", name)):
        return scored[name], name
    raise NotPromotedError("no model has scored anybody yet; 'cdp-ml refresh' says why")


def _start(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a process group of its own, so that its workers can be stopped with it."""
    with log.open("w") as out:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _wait(process: subprocess.Popen[bytes], url: str, log: Path, timeout: float) -> None:
    """Wait until the URL answers."""
    end = time.monotonic() + timeout
    while time.monotonic() < end and process.poll() is None:
        with suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.1)
    what = "ended" if process.poll() is not None else f"was not ready within {timeout:.0f} s"
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
    raise CdpError(f"the service {what}; the end of its log:\n{tail}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the service and its workers, which share its process group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=10)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Let SIGTERM unwind the stack, so that what was started is stopped."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
