"""The notebooks: stored clean, and running from top to bottom."""

import json
from pathlib import Path

import pytest

from harness import ROOT
from notebook_kernel import NOTEBOOKS, environment, plots_of


def test_there_are_three_and_they_are_stored_without_outputs() -> None:
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03"]
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text())["cells"]
        assert path.stat().st_size < 20_000, path
        assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")], path


@pytest.mark.parametrize("path", [*NOTEBOOKS, ROOT / "examples" / "unchanged.py"], ids=lambda path: path.stem)
def test_unsloth_is_imported_before_trl(path: Path) -> None:
    """What a reader copies; a formatter that sorts imports would turn it round."""
    text = path.read_text()
    texts = [text]
    if path.suffix == ".ipynb":
        texts = ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    training = [source for source in texts if "from trl import" in source]
    assert training
    for source in training:
        assert 0 <= source.find("from unsloth import") < source.find("from trl import")


@pytest.mark.notebook
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs_top_to_bottom(path: Path, tmp_path: Path, tiny_model: Path) -> None:
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")

    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=500, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute(env=environment(tmp_path, tiny_model))

    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(output.get("text", "") for output in outputs)
    images = [output for output in outputs if "image/png" in output.get("data", {})]
    expected = {
        "01": ("largest difference", "row 17 has no text"),
        "02": ("per_device_train_batch_size = 2", "UnslothAcceleratedSFTTrainer on", "save_once"),
        "03": ("largest difference",),
    }[path.name[:2]]
    for words in expected:
        assert words in text, text[-2000:]
    assert len(images) == plots_of(path, tmp_path)
