"""The browser of the tests that look at pages as a reader does."""

import shutil
import subprocess

import pytest


def find_chromium(**also: bool) -> str:
    """The browser's path; skips with all that is missing.

    Args:
        also (`bool`): What else the test needs, by name, and whether it is there.
    """
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    node = shutil.which("node")
    found = {
        "chromium": browser is not None,
        "node": node is not None,
        **also,
        "playwright-core (npm, on NODE_PATH)": node is not None and _has_playwright(node),
    }
    missing = [name for name, there in found.items() if not there]
    if missing or browser is None:
        pytest.skip(f"no {', no '.join(missing)}: run `make browser-test`")
    return browser


def _has_playwright(node: str) -> bool:
    return subprocess.run([node, "-e", "require('playwright-core')"], capture_output=True, check=False).returncode == 0
