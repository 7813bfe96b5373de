"""The process that imports everything: on installations that are really broken, and on this one."""

from pathlib import Path

import pytest

from packages import plant
from unsloth_accel.doctor.imports import check_imports
from unsloth_accel.doctor.survey import NotAnswered, Survey, take_survey
from unsloth_accel.fixes import FIXES


pytestmark = pytest.mark.cpu


def survey_with(folder: Path, monkeypatch: pytest.MonkeyPatch, **sources: str) -> Survey:
    monkeypatch.setenv("PYTHONPATH", str(plant(folder, **sources)))
    return take_survey(timeout=300)


@pytest.fixture(scope="module")
def survey() -> Survey:
    return take_survey(timeout=300)


def test_this_installation_answers_everything(survey: Survey) -> None:
    assert survey.end == ""
    assert survey.errors == {}
    assert [found.verdict for found in check_imports(survey)] == ["PASS"]
    assert [fix["name"] for fix in survey.answer("fixes")] == [fix.name for fix in FIXES]
    needed = {fix["name"]: fix["needed"] for fix in survey.answer("fixes")}
    assert needed["save_once"] is True
    assert needed["device_map"] == bool(survey.answer("gpus")), "Unsloth's CPU backend takes no device map"
    assert survey.answer("launch config").endswith("default_config.yaml")


def test_an_import_that_raises_is_named_and_the_rest_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    survey = survey_with(tmp_path, monkeypatch, peft="raise ImportError('undefined symbol: _ZN3c10')")
    found = {finding.check: finding for finding in check_imports(survey)}
    assert found["import peft"].message == "ImportError: undefined symbol: _ZN3c10"
    assert found["import peft"].mend.startswith("pip install --force-reinstall --no-deps peft")
    assert {finding.verdict for finding in found.values()} == {"FAIL"}
    assert "import torch" not in found
    assert survey.answer("gpus") is not None


def test_a_package_that_lacks_another_names_that_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    survey = survey_with(tmp_path, monkeypatch, torch="import no_such_library")
    found = {finding.check: finding for finding in check_imports(survey)}
    assert found["import torch"].mend == "pip install no_such_library"


def test_an_import_that_ends_the_process_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    survey = survey_with(tmp_path, monkeypatch, torch="import os; os.abort()")
    (found,) = check_imports(survey)
    assert (found.check, found.verdict) == ("import torch", "FAIL")
    assert found.message == "the process that imports it ended with SIGABRT"
    with pytest.raises(NotAnswered, match="not asked: the process that imports it ended with SIGABRT"):
        survey.answer("gpus")


def test_an_import_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(plant(tmp_path, torch="import time; time.sleep(600)")))
    (found,) = check_imports(take_survey(timeout=10))
    assert (found.check, found.verdict) == ("import torch", "FAIL")
    assert found.message == "the process that imports it was ended after 10 s"
