"""A reviewer's walk: a headless Chromium opens MLflow's pages, and keeps what it sees.

usage: python tests/e2e/mlflow_walk.py WORKSPACE FOLDER [MODEL]

Starts the server that `cdp-ml ui` starts, opens the experiment, the newest run, its files and the
registered version of each model (or of MODEL), and writes a screenshot and the visible text of each
page into FOLDER. Needs a Chromium or Chrome that is installed, and nothing else: the browser is
driven by the DevTools protocol through a pipe.
"""

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FIRST_VISIT = {"mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true", "locale": "en"}
"""What MLflow's pages remember of somebody who closed the assistant that greets newcomers."""
SEEN = "(document.body?.innerText ?? '')"
SEEN_IN_FRAME = "(document.querySelector('iframe')?.contentDocument?.body?.innerText ?? '')"
EXPAND = (
    "[...document.querySelectorAll('button')].filter(b => b.innerText == 'Show more')[0]?.click()"
)


def installed_browser() -> str | None:
    """The path of a Chromium or Chrome; None if there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """A page of a headless Chromium."""

    def __init__(self, program: str, profile: Path, size: tuple[int, int] = (1500, 1000)) -> None:
        """Start it.

        Args:
            program: its path.
            profile: an empty folder for what it remembers.
            size: width and height of the page.
        """
        reads, self._out = os.pipe()
        self._in, writes = os.pipe()
        flags = [
            *("--headless", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
            *("--remote-debugging-pipe", f"--user-data-dir={profile}"),
            f"--window-size={size[0]},{size[1]}",
            # Its sandbox refuses to work for root, as in a container.
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
        ]
        quiet = (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)
        # The browser reads commands from descriptor 3 and answers on 4.
        pipes = [(os.POSIX_SPAWN_DUP2, reads, 3), (os.POSIX_SPAWN_DUP2, writes, 4)]
        self._process = os.posix_spawn(
            program, [program, *flags, "about:blank"], os.environ, file_actions=[*pipes, quiet]
        )
        os.close(reads)
        os.close(writes)
        self._number, self._session, self._left = 0, "", b""
        (page,) = [t for t in self._call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        attached = self._call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        self._call("Page.enable")
        remembered = "".join(
            f"localStorage.setItem({json.dumps(k)}, {json.dumps(v)});"
            for k, v in FIRST_VISIT.items()
        )
        self._call(
            "Page.addScriptToEvaluateOnNewDocument",
            source=f"if (location.protocol.startsWith('http')) {{{remembered}}}",
        )

    def close(self) -> None:
        """End it."""
        os.kill(self._process, signal.SIGTERM)
        os.waitpid(self._process, 0)
        os.close(self._in)
        os.close(self._out)

    def open(self, url: str) -> None:
        """Go to a page."""
        self._call("Page.navigate", url="about:blank")
        self._call("Page.navigate", url=url)

    def text(self, settled: float = 3.0, patience: float = 30.0) -> str:
        """The visible text, once it has not changed for `settled` seconds."""
        before, since, start = "", time.monotonic(), time.monotonic()
        while time.monotonic() - start < patience:
            time.sleep(0.1)
            now = self.ask(f"{SEEN} + {SEEN_IN_FRAME}") or ""
            if now != before:
                before, since = now, time.monotonic()
            elif now.strip() and time.monotonic() - since >= settled:
                return str(now)
        return before

    def ask(self, script: str) -> object:
        """The value of an expression in the page."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True)
        return answer["result"].get("value")

    def shoot(self, path: Path, height: int) -> None:
        """Write a screenshot of the page at a height."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=1500, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        self.text(settled=0.5)
        shot = self._call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))

    def _call(self, method: str, **params: object) -> dict:
        self._number += 1
        asked = {"id": self._number, "method": method, "params": params}
        if self._session:
            asked["sessionId"] = self._session
        os.write(self._out, json.dumps(asked).encode() + b"\0")
        while True:
            answer = json.loads(self._message())
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return dict(answer["result"])

    def _message(self) -> bytes:
        while b"\0" not in self._left:
            self._left += os.read(self._in, 1 << 16)
        message, _, self._left = self._left.partition(b"\0")
        return message


@contextmanager
def browsing(program: str) -> Iterator[Browser]:
    """A browser that remembers nothing afterwards."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(program, Path(profile))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def mlflow_pages(workspace: Path) -> Iterator[str]:
    """MLflow's pages on a workspace's runs, at the URL that is given, until the end."""
    from cdp_ml.config import load_settings
    from cdp_ml.learn.registry import ui_command

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command, environment = ui_command(load_settings(workspace), port)
    server = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", server)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def _wait_for(url: str, server: subprocess.Popen, patience: float = 90.0) -> None:
    start = time.monotonic()
    while time.monotonic() - start < patience and server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=1)
            return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError("MLflow's pages did not start")


def pages_of(workspace: Path, model: str) -> dict[str, tuple[str, int]]:
    """The pages of a model by name: the path and the height at which there is most to see."""
    import mlflow

    from cdp_ml.config import load_settings
    from cdp_ml.learn.registry import tracking_uri

    uri = tracking_uri(load_settings(workspace))
    client = mlflow.MlflowClient(uri, uri)
    (newest, *_) = client.search_model_versions(f"name = '{model}'")
    experiment = client.get_run(newest.run_id).info.experiment_id
    training = "?workflowType=machine_learning"
    run = f"#/experiments/{experiment}/runs/{newest.run_id}"
    files = [f.path for f in client.list_artifacts(newest.run_id) if not f.is_dir]
    heights = {"report.html": 4000, "champion.md": 1000, "model_card.md": 2400}
    runs = f"#/experiments/{experiment}/runs{training}"
    return {
        f"{model}-runs": (runs, 1000),
        f"{model}-baselines": (f"{runs}&viewStateShareKey=baselines", 700),
        f"{model}-run": (run + training, 2400),
        **{
            f"{model}-{Path(f).stem}": (f"{run}/artifacts/{quote(f)}{training}", heights[f])
            for f in files
            if f in heights
        },
        f"{model}-model": (f"#/models/{model}{training}", 1000),
        f"{model}-version": (f"#/models/{model}/versions/{newest.version}{training}", 3000),
    }


def walk(workspace: Path, folder: Path, pages: dict[str, tuple[str, int]]) -> dict[str, str]:
    """Open pages one after another, and write what is seen.

    Args:
        workspace: whose runs.
        folder: where `NAME.png` and `NAME.txt` are written.
        pages: path and height by name.

    Returns:
        The visible text of each page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    program = installed_browser()
    if program is None:
        raise FileNotFoundError(f"no browser: install one of {', '.join(NAMES)}")
    seen = {}
    with mlflow_pages(workspace) as url, browsing(program) as browser:
        for name, (path, height) in pages.items():
            browser.open(f"{url}/{path}")
            browser.text()
            browser.ask(EXPAND)
            browser.shoot(folder / f"{name}.png", height)
            seen[name] = browser.text(settled=0.3)
            (folder / f"{name}.txt").write_text(seen[name], encoding="utf-8")
    return seen


def main(workspace: str, folder: str, *models: str) -> None:
    """Walk through the pages of all models, or of those that are named."""
    from cdp_ml.config import load_models, load_settings

    home = Path(workspace)
    pages = {"experiments": ("#/experiments?workflowType=machine_learning", 800)}
    pages["models"] = ("#/models?workflowType=machine_learning", 800)
    for model in models or load_models(load_settings(home)):
        pages |= pages_of(home, model)
    for name, text in walk(home, Path(folder), pages).items():
        print(f"{name}: {len(text.split())} words")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
