"""Each notebook in a real JupyterLab in a real Chromium. `make browser-test` installs what this needs."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from browser import find_chromium
from harness import ROOT, free_port
from notebook_kernel import NOTEBOOKS, environment, plots_of


SCREENSHOTS = ROOT / "build" / "browser"
DRIVER = Path(__file__).parents[1] / "workers" / "browser.mjs"


@pytest.fixture(scope="module")
def chromium() -> str:
    return find_chromium(jupyterlab=find_spec("jupyterlab") is not None)


@pytest.fixture(scope="module")
def lab(chromium: str, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[SimpleNamespace]:
    """A JupyterLab on copies of the notebooks, each in a folder of its own: outputs stay out of the checkout."""
    folder = tmp_path_factory.mktemp("lab")
    for notebook in NOTEBOOKS:
        (folder / notebook.stem).mkdir()
        shutil.copy(notebook, folder / notebook.stem)
    port, token = free_port(), secrets.token_hex()
    options = ["--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}"]
    options += [f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}"]
    with (folder / "lab.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options],
            env=environment(folder, tiny_model) | {"JUPYTER_CONFIG_DIR": str(folder / "config")},  # no earlier tabs
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/api?token={token}", server, folder / "lab.log")
        place = f"http://127.0.0.1:{port}/lab/workspaces"
        yield SimpleNamespace(
            folder=folder, url=lambda path: f"{place}/{path.stem}/tree/{path.stem}/{path.name}?token={token}"
        )
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def _wait_for(url: str, server: "subprocess.Popen[bytes]", log: Path, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except urllib.error.URLError:
            time.sleep(0.2)
        else:
            return
    raise AssertionError(f"JupyterLab does not answer:\n{log.read_text()}")


@pytest.mark.notebook
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs_in_a_browser(path: Path, lab: SimpleNamespace, chromium: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    screenshot = SCREENSHOTS / f"{path.stem}.png"
    screenshot.unlink(missing_ok=True)

    command = ["node", str(DRIVER), lab.url(path), chromium, str(screenshot)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, check=False)

    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["errors"] == []
    assert seen["cells"] == sum(cell["cell_type"] == "code" for cell in json.loads(path.read_text())["cells"])
    assert len(seen["plots"]) == plots_of(path, lab.folder / path.stem)
    assert all(width > 200 and height > 100 for width, height in seen["plots"]), "a plot did not render"
    assert seen["bars"] > 0, "the progress bar of rank 0 is not in the page"
    assert screenshot.stat().st_size > 10_000
