import json
from pathlib import Path

import pytest

from unsloth_accel import ConfigurationError
from unsloth_accel.estimate.model_config import folder_of, read_config, stored_bits


pytestmark = pytest.mark.usefixtures("model_libraries")

LLAMA = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 3}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    return tmp_path


def test_a_folder_and_its_config_say_the_same(folder: Path) -> None:
    for path in (folder, folder / "config.json"):
        assert read_config(str(path)).num_hidden_layers == 3
        assert folder_of(str(path)) == str(folder)
    assert folder_of("unsloth/Llama-3.2-3B") == "unsloth/Llama-3.2-3B"


@pytest.mark.parametrize(
    ("quantised", "bits"),
    [(None, 16), ({"load_in_4bit": True}, 4), ({"load_in_8bit": True}, 8), ({"quant_method": "gptq", "bits": 4}, 16)],
)
def test_bitsandbytes_says_how_weights_are_stored(
    folder: Path, quantised: dict[str, object] | None, bits: int
) -> None:
    if quantised is not None:
        whole = {"quant_method": "bitsandbytes", **quantised}
        (folder / "config.json").write_text(json.dumps(LLAMA | {"quantization_config": whole}))
    assert stored_bits(read_config(str(folder))) == bits


def test_no_model_is_an_error_that_says_what_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for nothing in (str(tmp_path), "no-such/model"):
        with pytest.raises(ConfigurationError, match="`--model` must be a folder or file with a model's config.json"):
            read_config(nothing)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "of-tomorrow"}))
    with pytest.raises(ConfigurationError, match="of-tomorrow"):
        read_config(str(tmp_path))
