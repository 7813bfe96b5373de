"""The config that `accelerate launch` reads where it is given none."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..ranks.gpu_config import BF16_FROM
from .finding import Finding
from .survey import NotAnswered, Survey, unanswered


CHECK = "launch config"
# Accelerate's names of what shards a model, where this package stands down.
SHARDING = ("FSDP", "DEEPSPEED", "MEGATRON_LM")


def check_launch_config(survey: Survey) -> Iterator[Finding]:
    """Accelerate's default config, which each launch without `--config_file` takes."""
    try:
        path, cards = Path(survey.answer("launch config")), survey.answer("gpus")
    except NotAnswered as reason:
        yield unanswered(CHECK, reason)
        return
    if not path.is_file():
        yield Finding(CHECK, "PASS", f"there is no {path}; the shipped ones are given with --config_file")
        return
    config, fault = _read(path)
    if fault:
        yield Finding(CHECK, "FAIL", f"{path} {fault}", f"rm {path}")
        return
    findings = [*_processes(config, cards), *_precision(config, cards)]
    for one in findings:
        yield Finding(CHECK, one.verdict, f"{path}: {one.message}", one.mend)
    if not findings:
        yield Finding(CHECK, "PASS", f"{path}: {config['distributed_type']}")


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """The config, and why Accelerate would refuse it."""
    import yaml

    try:
        config = yaml.safe_load(path.read_text())  # JSON is YAML, too
    except yaml.YAMLError as error:
        return {}, f"cannot be read: {' '.join(str(error).split())}"
    if not isinstance(config, dict) or "distributed_type" not in config:
        return {}, "has no distributed_type, and Accelerate refuses it"
    return config, ""


def _processes(config: dict[str, Any], cards: Sequence[Any]) -> Iterator[Finding]:
    """How many ranks it starts, and on what."""
    kind, count = str(config["distributed_type"]), config.get("num_processes")
    on_cpu = bool(config.get("use_cpu"))
    if kind == "MULTI_CPU":
        yield Finding(CHECK, "FAIL", "MULTI_CPU starts one process, without a word", _on_cpu())
    elif kind in SHARDING:
        yield Finding(CHECK, "WARN", f"{kind} shards the model, and this package stands down", _with("ddp"))
    elif kind != "MULTI_GPU":  # a bare NO is false in YAML
        wanted = max(len(cards), count if isinstance(count, int) else 1)
        if wanted > 1:
            yield Finding(CHECK, "WARN", f"{kind} starts one process, not {wanted}", _with("ddp"))
    elif not on_cpu and not cards:
        yield Finding(CHECK, "FAIL", "MULTI_GPU, and no GPU is visible", _on_cpu())
    elif on_cpu and "ACCELERATE_USE_CPU" not in os.environ:
        message = "use_cpu is not passed on to the ranks, which then train apart"
        yield Finding(CHECK, "WARN", message, "export ACCELERATE_USE_CPU=true")
    elif isinstance(count, int) and config.get("num_machines", 1) == 1 and not on_cpu and count > len(cards):
        message = f"num_processes is {count}, and {len(cards)} GPUs are visible"
        yield Finding(CHECK, "FAIL", message, f"{_with('ddp')[:-3]}--num_processes {len(cards)} ...")


def _precision(config: dict[str, Any], cards: Sequence[Any]) -> Iterator[Finding]:
    precision = config.get("mixed_precision")
    if isinstance(precision, bool):
        message = f"mixed_precision is {precision}: YAML reads a bare no as false, and the launch dies of it"
        yield Finding(CHECK, "FAIL", message, 'write mixed_precision: "no", in quotes')
    elif precision == "bf16" and any(card["capability"] < BF16_FROM for card in cards):
        yield Finding(CHECK, "FAIL", "mixed_precision is bf16, which a GPU here does not compute", _with("ddp_fp16"))


def _with(name: str) -> str:
    return f'accelerate launch --config_file "$(unsloth-accel config path {name})" ...'


def _on_cpu() -> str:
    return f"ACCELERATE_USE_CPU=true {_with('cpu_gloo')}"
