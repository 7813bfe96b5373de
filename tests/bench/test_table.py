from typing import Any

from unsloth_accel.bench.table import by_workload, table, tables


def result(contender: str, round_number: int, ms: float, **more: Any) -> dict[str, Any]:
    return {
        "model": "3b",
        "finetuning": "lora",
        "lora_rank": 16,
        "sequence": 2048,
        "work": "2x4:lognormal:padding-free",
        "world_size": 2,
        "card_gib": None,
        "device": "NVIDIA H100 80GB HBM3",
        "compiled": True,
        "call": "2026-11-26T08:20:00",
        "contender": contender,
        "round": round_number,
        "ms": ms,
        "tokens_per_s": round(8_000_000 / ms),
        "mfu": 0.2,
        "peak_gib": 8.0,
        "imbalance": 1.2,
        "loss": [12.0, 11.0],
        "plan": None,
        **more,
    }


RUNS = [
    result("plain", 1, 800.0),
    result("varlen", 1, 400.0),
    result("keep", 1, 300.0, loss=[12.0, 11.011], peak_gib=9.0),
    result("plain", 2, 900.0),
    result("varlen", 2, 500.0),
    result("keep", 2, 250.0, mfu=None),
    result("varlen", 3, 600.0),  # the others' third round was not reached
]


def test_ratios_are_taken_round_by_round_against_varlen() -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(RUNS).splitlines()]
    assert rows[0][-1] == "loss to varlen's"
    assert rows[2] == ["plain", "850 (800, 900)", "1.900 (2.000, 1.800)", "9,444", "20.0 %", "8.00", "1.200", "0e+00"]
    assert rows[4] == ["keep", "275 (300, 250)", "0.625 (0.750, 0.500)", "29,334", "20.0 %", "9.00", "1.200", "1e-03"]


def test_without_varlen_the_first_one_is_the_reference() -> None:
    assert "| plain | 850 (800, 900) | 1.000 (1.000, 1.000) |" in table(
        [r for r in RUNS if r["contender"] != "varlen"]
    )


def test_each_workload_has_a_table_with_its_origin() -> None:
    runs = [*RUNS, result("auto", 1, 100.0, plan="1 piece")]
    page = tables([*runs, *({**one, "world_size": 1, "compiled": False} for one in runs)])
    what = "3b lora r=16, 2x4:lognormal:padding-free up to 2048 tokens"
    assert f"{what}, 2 x NVIDIA H100 80GB HBM3, compiled:" in page
    assert f"{what}, 1 x NVIDIA H100 80GB HBM3, not compiled:" in page
    assert page.count("| keep |") == 2
    assert page.count("`auto` found: 1 piece.") == 2


def test_calls_are_never_mixed_because_rounds_are_compared_within_one() -> None:
    later = [result("varlen", 1, 200.0, call="2026-11-26T09:00:00"), result("auto", 1, 100.0, call=RUNS[0]["call"])]
    assert [len(runs) for runs in by_workload([*RUNS, *later])] == [len(RUNS) + 1, 1]


def test_a_smaller_card_is_a_workload_of_its_own() -> None:
    page = tables([*RUNS, *({**one, "card_gib": 15.0} for one in RUNS)])
    assert "2 x NVIDIA H100 80GB HBM3 held to 15 GiB, compiled:" in page
    assert page.count("| keep |") == 2
