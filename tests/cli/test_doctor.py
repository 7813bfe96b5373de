import argparse
import json
import sys

import pytest

from unsloth_accel.cli import doctor
from unsloth_accel.fixes import FIXES
from unsloth_accel.imports import FLOORS


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    doctor.add_parser(parser.add_subparsers())
    args = parser.parse_args(["doctor", *arguments])
    code: int = args.run(args)
    return code


def test_doctor_lists_every_fix_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    run()
    said = capsys.readouterr().out
    for fix in FIXES:
        verdict = fix.probe(None)
        assert f"{fix.name}: {'needed' if verdict.needed else 'not needed'} ({verdict.reason})" in said
    for package in FLOORS:
        assert package in said


def test_doctor_speaks_json(capsys: pytest.CaptureFixture[str]) -> None:
    run("--json")
    said = json.loads(capsys.readouterr().out)
    assert [fix["name"] for fix in said["fixes"]] == [fix.name for fix in FIXES]
    assert said["versions"].keys() == FLOORS.keys()


def test_doctor_fails_when_a_package_is_below_its_floor(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run() == 0
    monkeypatch.setitem(FLOORS, "torch", "99.0")
    assert run() == 1
    assert "needs >= 99.0" in capsys.readouterr().out


def test_doctor_does_not_ask_the_fixes_where_a_package_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FLOORS, "no-such-package", "1.0")
    monkeypatch.setitem(sys.modules, "torch", None)  # so that importing it fails
    assert run() == 1
    said = capsys.readouterr().out
    assert "no-such-package not installed" in said
    assert FIXES[0].name not in said
