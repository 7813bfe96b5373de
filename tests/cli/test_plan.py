"""`unsloth-accel plan` as a user starts it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from estimate.recipes import write_config, write_rows
from unsloth_accel import StepPlan, UnslothAcceleratorPlugin
from unsloth_accel.cli.main import main


pytestmark = pytest.mark.usefixtures("model_libraries")


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(write_config(tmp_path))


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    return str(write_rows(tmp_path / "rows.jsonl", 400))


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(["plan", *arguments])
    return code, capsys.readouterr().out


def test_a_model_alone_is_enough(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = plan(capsys, "--model", model, "--gpu-memory", "80")
    assert code == 0
    assert "LoRA r=16 on 16 bit weights" in said
    assert "weights                    6.72 GiB" in said
    assert "*      1    16,384     28 of 28      42.4" in said
    assert "1,024          8,192" in said
    assert said.endswith('"$(unsloth-accel config path ddp)" --num_processes 2 train.py\n')


def test_the_plan_can_be_given_to_a_run(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, said = plan(capsys, "--model", model, "--gpu-memory", "80")
    (text,) = re.findall(r"^export UNSLOTH_ACCEL_PLAN='(.*)'$", said, re.MULTILINE)
    monkeypatch.setenv("UNSLOTH_ACCEL_PLAN", text)
    assert UnslothAcceleratorPlugin().plan == StepPlan(pieces=1, tokens=16_384, layers_kept=28)


def test_a_data_set_is_counted(model: str, dataset: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--model", model, "--gpu-memory", "16", "--dataset", dataset, "--ranks", "4", "--json"]
    code, said = plan(capsys, *given)
    found: dict[str, Any] = json.loads(said)
    assert code == 0
    epoch = found["epoch"]
    assert (epoch["ranks"], epoch["steps"]) == (4, 13)
    assert epoch["imbalance"] < 1.05 < epoch["plain_imbalance"]
    assert 0.2 < epoch["padding"] < 0.5
    assert found["tokens"] == epoch["largest_step"]
    assert found["plan"]["memory"]["peak"] <= found["room"] == pytest.approx(13.9)
    candidate = found["plan"]["candidate"]
    assert found["step_plan"] == {
        "pieces": candidate["pieces"],
        "tokens": candidate["tokens"],
        "layers_kept": candidate["layers_kept"],
        "balance": True,
    }
    assert [row["ranks"] for row in found["scaling"]] == [1, 2, 4, 8, 64, 1024]


def test_what_does_not_fit_is_exit_code_1(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = plan(capsys, "--model", model, "--gpu-memory", "8", "--full")
    assert code == 1
    assert "One row with every layer recomputed needs" in said
    assert "a run may use 6.7 of 8 GiB" in said
    assert "accelerate launch" not in said


def test_quantised_weights_take_a_quarter(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, said = plan(capsys, "--model", model, "--gpu-memory", "16", "--bits", "4", "--json")
    assert json.loads(said)["least"]["weights"] == pytest.approx(2.87, abs=0.01)


def test_a_card_without_a_known_peak_has_no_times(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = plan(capsys, "--model", model, "--gpu-memory", "80", "--gpu", "a card of tomorrow")
    assert code == 0
    assert "No times: no peak of 'a card of tomorrow'." in said


def test_more_than_a_host_is_started_on_each_of_them(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, said = plan(capsys, "--model", model, "--gpu-memory", "80", "--ranks", "16")
    first, last = said.splitlines()[-2:]
    assert "ddp_multinode" in first
    assert "--num_machines 2 --num_processes 16" in first
    assert (first[-10:], last[-10:]) == ("0 train.py", "1 train.py")


def test_the_plot_is_a_picture(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "scaling.png"
    plan(capsys, "--model", model, "--gpu-memory", "80", "--plot", str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpu-memory", "0"], "`--gpu-memory` must be above 0, got 0.0."),
        (["--gpu-memory", "80", "--rows", "0"], "`rows` must be a positive integer, got 0."),
        (["--gpu-memory", "80", "--full", "--bits", "4"], "`bits` must be 16 where every weight is trained, got 4."),
        (["--gpu-memory", "8", "--plot", "x.png"], "`--plot` has nothing to draw"),
        (["--gpu-memory", "80", "--plot", "x.nonsense"], "`--plot` must be a file that can be written"),
    ],
)
def test_bad_input_is_explained(
    model: str, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(model).parent)
    extra = ["--bits", "16", "--seq", "8192"] if "8" in arguments else []
    assert main(["plan", "--model", model, *arguments, *extra]) == 2
    assert said in capsys.readouterr().err
