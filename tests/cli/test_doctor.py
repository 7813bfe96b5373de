import argparse
import json

from unsloth_accel.cli import doctor
from unsloth_accel.fixes import FIXES
from unsloth_accel.imports import FLOORS


def run(*arguments):
    parser = argparse.ArgumentParser()
    doctor.add_parser(parser.add_subparsers())
    args = parser.parse_args(["doctor", *arguments])
    return args.run(args)


def test_doctor_lists_every_fix_with_its_reason(capsys):
    run()
    said = capsys.readouterr().out
    for fix in FIXES:
        verdict = fix.probe(None)
        assert f"{fix.name}: {'needed' if verdict.needed else 'not needed'} ({verdict.reason})" in said
    for package in FLOORS:
        assert package in said


def test_doctor_speaks_json(capsys):
    run("--json")
    said = json.loads(capsys.readouterr().out)
    assert [fix["name"] for fix in said["fixes"]] == [fix.name for fix in FIXES]
    assert said["versions"].keys() == FLOORS.keys()


def test_doctor_fails_when_a_package_is_below_its_floor(capsys, monkeypatch):
    assert run() == 0
    monkeypatch.setitem(FLOORS, "torch", "99.0")
    assert run() == 1
    assert "needs >= 99.0" in capsys.readouterr().out
