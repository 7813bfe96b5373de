import subprocess
import sys

import pytest

from harness import ROOT
from unsloth_accel import ConfigurationError
from unsloth_accel.bench.compare import by_library
from unsloth_accel.bench.workload import IMAGE_SIDES, Workload


def test_a_workload_is_read_and_written() -> None:
    assert Workload.parse("2x4:lognormal") == Workload(2, 4, "lognormal", "padding-free")
    assert str(Workload.parse("8x1:pareto:packed")) == "8x1:pareto:packed"
    assert Workload.parse("2x4:lognormal:images").has_images
    assert not Workload.parse("2x4:lognormal:padded").has_images


@pytest.mark.parametrize("text", ["2x4", "0x4:fixed", "2x4:normal", "2x4:fixed:ragged", "2x4:fixed:packed:"])
def test_another_form_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="`work` must be ROWSxACCUMULATION:LENGTHS"):
        Workload.parse(text)


def test_there_are_as_many_documents_as_rows() -> None:
    texts = Workload.parse("2x4:lognormal").texts(steps=5, world_size=2, sequence=2048)
    assert len(texts) == 80
    assert texts == Workload.parse("2x4:lognormal:padded").texts(steps=5, world_size=2, sequence=2048)


def test_packed_rows_have_documents_enough() -> None:
    texts = Workload.parse("2x4:pareto:packed").texts(steps=5, world_size=2, sequence=2048)
    assert sum(len(text.split()) for text in texts) >= 80 * 2048


def test_half_of_the_rows_have_an_image() -> None:
    sides = Workload.image_sides(160)
    assert sides.count(None) == 80
    assert {side for side in sides if side is not None} == set(IMAGE_SIDES)
    texts = Workload.parse("2x4:lognormal:images").texts(steps=10, world_size=2, sequence=2048)
    assert texts == Workload.parse("2x4:lognormal:padded").texts(steps=10, world_size=2, sequence=2048)


def test_the_ranks_of_a_micro_batch_do_not_see_as_much() -> None:
    """Of the micro-batches of two rows that two ranks compute at a time; in some only one of them runs the tower."""
    sides = Workload.image_sides(160)
    images = [sum(side is not None for side in sides[row : row + 2]) for row in range(0, 160, 2)]
    pairs = list(zip(images[::2], images[1::2], strict=True))
    assert any(first > second for first, second in pairs)
    assert any(first < second for first, second in pairs)
    assert any(0 in pair and any(pair) for pair in pairs)


def test_every_process_draws_the_same_images() -> None:
    code = "from unsloth_accel.bench.workload import Workload; print(Workload.image_sides(64))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(Workload.image_sides(64))


def test_contenders_of_one_library_share_a_launch() -> None:
    assert by_library(["trl", "varlen", "liger", "keep"]) == [("trl",), ("varlen", "keep"), ("liger",)]
