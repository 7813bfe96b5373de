import pytest

from unsloth_accel import ConfigurationError
from unsloth_accel.bench.compare import by_library
from unsloth_accel.bench.workload import Workload


def test_a_workload_is_read_and_written() -> None:
    assert Workload.parse("2x4:lognormal") == Workload(2, 4, "lognormal", "padding-free")
    assert str(Workload.parse("8x1:pareto:packed")) == "8x1:pareto:packed"


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


def test_contenders_of_one_library_share_a_launch() -> None:
    assert by_library(["trl", "varlen", "liger", "keep"]) == [("trl",), ("varlen", "keep"), ("liger",)]
