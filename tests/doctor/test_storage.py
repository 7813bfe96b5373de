"""Room, and the folder of Unsloth's generated code."""

from importlib.metadata import version
from pathlib import Path

import pytest

from unsloth_accel.doctor.storage import check_compiled_cache, check_disk, check_shared_memory


VERSIONS = [version(package) for package in ("unsloth_zoo", "unsloth", "transformers", "trl")]


def generated(versions: list[str]) -> str:
    """The head of a file as unsloth_zoo.compiler writes it."""
    return '"""\n' + "\n".join(versions) + "\n__UNSLOTH_VERSIONING__\n" + '"""\n'


def test_room_is_measured_here_and_where_models_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "not" / "there" / "yet"))
    here, models = check_disk()
    assert f"GiB free in {tmp_path}" in here.message
    assert f"GiB free in {tmp_path}/not/there/yet" in models.message
    (shared,) = check_shared_memory()
    assert "GiB free in /dev/shm" in shared.message


def test_a_full_disk_is_a_failure(full_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not full_disk.exists():
        pytest.skip("this user may not mount")
    monkeypatch.chdir(full_disk)
    here, _ = check_disk()
    assert here.verdict == "FAIL"
    assert here.mend


def test_a_cache_of_these_versions_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSLOTH_COMPILE_LOCATION", str(tmp_path))
    (tmp_path / "UnslothSFTTrainer.py").write_text(generated(VERSIONS))
    (tmp_path / "moe_utils.py").write_text("# no versions\n")
    assert [found.verdict for found in check_compiled_cache()] == ["PASS"]


def test_a_cache_of_other_versions_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSLOTH_COMPILE_LOCATION", str(tmp_path))
    (tmp_path / "UnslothSFTTrainer.py").write_text(generated(["2026.1.1", *VERSIONS[1:]]))
    (found,) = check_compiled_cache()
    assert found.verdict == "WARN"
    assert "1 files of other versions" in found.message
    assert found.mend == f"rm -r {tmp_path}"


def test_a_cache_that_cannot_be_written_is_a_warning(read_only: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not read_only.exists():
        pytest.skip("this user may not mount")
    monkeypatch.setenv("UNSLOTH_COMPILE_LOCATION", str(read_only / "cache"))
    (found,) = check_compiled_cache()
    assert found.verdict == "WARN"
    assert "UNSLOTH_COMPILE_LOCATION" in found.mend
    assert not (read_only / "cache").exists()
