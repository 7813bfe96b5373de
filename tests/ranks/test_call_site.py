"""The lines of the user's code tell a call that one rank makes from one that all make."""

import cProfile
import os
import re
import subprocess
import sys
from pathlib import Path

from harness import ROOT
from unsloth_accel.ranks.call_site import call_site


# Programs are installed as packages, too. `tracker` is what one rank alone may have between.
PROGRAM = {
    "training/__init__.py": "",
    "training/main.py": "from training import saving\nprint(saving.save())\n",
    "training/saving.py": """\
from unsloth_accel.ranks.call_site import call_site
import tracker
def saves():
    return call_site()
def save():
    return tracker.tracked(saves)
""",
    "tracker.py": "def tracked(function):\n    return function()\n",
}


def here() -> str:
    return call_site()


def test_the_whole_way_counts() -> None:
    first = here()
    second = here()
    again = {here() for _ in range(2)}
    assert first != second, "the same function, called at two lines"
    assert first.split(" < ")[0] == second.split(" < ")[0]
    assert len(again) == 1, "a loop comes back to the same line"
    assert re.match(r"test_call_site.py:\d+ < test_call_site.py:\d+", first), "the innermost line comes first"


def test_what_a_profiler_adds_on_one_rank_does_not_count() -> None:
    assert "cProfile.py" not in cProfile.Profile().runcall(here)


def test_an_installed_program_is_the_users_and_an_installed_library_is_not(tmp_path: Path) -> None:
    for name, text in PROGRAM.items():
        file = tmp_path / "site-packages" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    path = os.pathsep.join([str(ROOT), str(tmp_path / "site-packages")])
    command = [sys.executable, "-m", "training.main"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "saving.py:4 < saving.py:6 < main.py:2"
