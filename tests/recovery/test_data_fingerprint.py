"""The fingerprint of the rows: the same for the same rows, another for others."""

from pathlib import Path
from typing import Any

import datasets
import pytest

from unsloth_accel.recovery.data_fingerprint import SAMPLED_ROWS, data_fingerprint


COUNT = 3 * SAMPLED_ROWS


def rows(count: int = COUNT) -> list[dict[str, Any]]:
    return [{"input_ids": list(range(row % 7 + 1)), "text": f"row {row}"} for row in range(count)]


def test_equal_rows_have_one_fingerprint_however_they_are_held(tmp_path: Path) -> None:
    made = datasets.Dataset.from_list(rows())
    expected = data_fingerprint(made)
    assert expected["rows"] == COUNT
    made.save_to_disk(str(tmp_path / "saved"))
    doubled = datasets.Dataset.from_list([row for row in rows() for _ in range(2)])
    for same in (
        datasets.Dataset.from_list(rows()),
        datasets.load_from_disk(str(tmp_path / "saved")),
        doubled.select(range(0, 2 * COUNT, 2)),
        made.with_format("torch"),
        made.with_transform(lambda batch: {"nothing": [0] * len(batch["text"])}),
        made.select_columns(["text", "input_ids"]),
    ):
        assert data_fingerprint(same) == expected


@pytest.mark.parametrize(
    "changed",
    [
        rows()[:-1],
        rows()[1:] + rows()[:1],
        [*rows()[: COUNT // 2], {"input_ids": [1], "text": "new"}, *rows()[COUNT // 2 : -1]],
        [{**row, "input_ids": [*row["input_ids"], 5]} for row in rows()],
    ],
    ids=["fewer", "other order", "inserted", "prepared otherwise"],
)
def test_other_rows_have_another(changed: list[dict[str, Any]]) -> None:
    assert data_fingerprint(datasets.Dataset.from_list(changed)) != data_fingerprint(
        datasets.Dataset.from_list(rows())
    )


def test_every_row_of_a_small_data_set_counts() -> None:
    expected = data_fingerprint(datasets.Dataset.from_list(rows(20)))
    for place in range(20):
        changed = rows(20)
        changed[place]["text"] = "changed"
        assert data_fingerprint(datasets.Dataset.from_list(changed)) != expected


def test_where_pictures_lie_is_of_no_account() -> None:
    features = datasets.Features({"text": datasets.Value("string"), "images": datasets.List(datasets.Image())})

    def at(folder: str) -> datasets.Dataset:
        return datasets.Dataset.from_dict({"text": ["a"], "images": [[f"{folder}/a.png"]]}, features=features)

    assert data_fingerprint(at("/here")) == data_fingerprint(at("/there"))
    assert data_fingerprint(at("/here").select_columns(["images"])) == {"rows": 1, "sha256": None}


def test_of_other_data_only_the_rows_are_known() -> None:
    assert data_fingerprint([1, 2, 3]) == {"rows": 3, "sha256": None}
    stream = datasets.Dataset.from_list(rows(4)).to_iterable_dataset()
    assert data_fingerprint(stream) == {"rows": None, "sha256": None}
    assert data_fingerprint(datasets.Dataset.from_list([]))["rows"] == 0
