"""`unsloth-accel plan`: memory, step plan, epoch and other numbers of ranks, estimated without a GPU."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigurationError


if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from ..estimate.epoch import Epoch
    from ..estimate.fitting import FittingPlan
    from ..estimate.forecast import Forecast
    from ..estimate.recipe import Recipe
    from ..estimate.scaling import ScalingRow


GPUS_OF_HOST = 8


def add_parser(subparsers: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `plan`."""
    parser = subparsers.add_parser("plan", help="estimate memory, step plan and speed without a GPU")
    parser.add_argument("--model", required=True, help="a folder or file with a config.json, or an id on the hub")
    parser.add_argument("--gpu-memory", type=float, required=True, metavar="GIB", help="of each GPU")
    parser.add_argument("--seq", type=int, default=2048, help="the most tokens of a row (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=2, help="of a micro-batch (default: %(default)s)")
    parser.add_argument("--accumulation", type=int, default=4, help="micro-batches of a step (default: %(default)s)")
    parser.add_argument("--ranks", type=int, default=2, help="one for each GPU (default: %(default)s)")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--lora-rank", type=int, default=16, help="adapters on all linear layers (default: %(default)s)")
    kind.add_argument("--full", action="store_true", help="train every weight, in bf16")
    parser.add_argument("--bits", type=int, choices=(4, 8, 16), help="of a linear weight (default: as it is stored)")
    parser.add_argument("--dataset", metavar="PATH", help=".jsonl, .parquet, .arrow, or a folder of save_to_disk")
    parser.add_argument("--gpu", default="NVIDIA H100 80GB HBM3", help="its name, for times (default: %(default)s)")
    parser.add_argument("--link", type=float, default=300.0, metavar="GB/S", help="in a host (default: %(default)s)")
    parser.add_argument(
        "--network", type=float, default=12.5, metavar="GB/S", help="between hosts (default: %(default)s)"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the numbers of ranks")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(run=run_plan)


def run_plan(args: argparse.Namespace) -> int:
    """Prints the forecast; the exit code is 1 if nothing fits."""
    _check(args)
    recipe, forecast = _forecast(args)
    if args.json:
        chosen = None if forecast.plan is None else json.loads(_step_plan(forecast.plan))
        print(json.dumps({**asdict(forecast), "step_plan": chosen, "launch": _launch_command(args.ranks)}, indent=2))
    else:
        print("\n".join(_as_text(args, recipe, forecast)))
    if args.plot is not None:
        _plot(args.plot, forecast)
    return 0 if forecast.plan is not None else 1


def _check(args: argparse.Namespace) -> None:
    for name in ("gpu_memory", "ranks", "link", "network"):
        value = getattr(args, name)
        if value <= 0:
            raise ConfigurationError(f"`--{name.replace('_', '-')}` must be above 0, got {value}.")


def _forecast(args: argparse.Namespace) -> "tuple[Recipe, Forecast]":
    from ..estimate.communication import Links
    from ..estimate.dataset import read_lengths
    from ..estimate.forecast import make_forecast
    from ..estimate.model_config import folder_of, read_config, stored_bits
    from ..estimate.recipe import Recipe
    from ..metrics.peak_flops import peak_flops
    from ..plan.cost import RowCost
    from ..plan.decoder import DecoderShape

    config = read_config(args.model)
    bits = args.bits or (16 if args.full else stored_bits(config))
    shape, rank = DecoderShape.from_config(config), None if args.full else args.lora_rank
    recipe = Recipe(shape, bits, rank, args.seq, args.rows, args.accumulation)
    lengths = None if args.dataset is None else read_lengths(args.dataset, folder_of(args.model), args.seq)
    peak = peak_flops(args.gpu, bf16=True) or peak_flops(args.gpu, bf16=False)
    links = Links(args.link, args.network)
    cost = RowCost.from_config(config)
    return recipe, make_forecast(recipe, cost, args.ranks, args.gpu_memory, peak, links, lengths)


def _plot(path: Path, forecast: "Forecast") -> None:
    from ..estimate.plot import plot_scaling

    if not forecast.scaling:
        raise ConfigurationError("`--plot` has nothing to draw: nothing fits, or the peak of `--gpu` is not known.")
    plot_scaling(forecast.scaling, path)


def _launch_command(ranks: int) -> list[str]:
    """For each host."""
    if ranks == 1:
        return ["python train.py"]
    if ranks <= GPUS_OF_HOST:
        return [f'accelerate launch --config_file "$(unsloth-accel config path ddp)" --num_processes {ranks} train.py']
    hosts = -(-ranks // GPUS_OF_HOST)
    common = (
        f'accelerate launch --config_file "$(unsloth-accel config path ddp_multinode)" --num_machines {hosts} '
        f"--num_processes {ranks} --main_process_ip ADDRESS --machine_rank"
    )
    return [f"{common} {host} train.py" for host in (0, hosts - 1)]


def _step_plan(plan: "FittingPlan") -> str:
    """As JSON, to be given to a run."""
    from ..step_plan import StepPlan

    one = plan.candidate
    return StepPlan(pieces=one.pieces, tokens=one.tokens, layers_kept=one.layers_kept).to_json()


def _as_text(args: argparse.Namespace, recipe: "Recipe", forecast: "Forecast") -> list[str]:
    kind = f"LoRA r={recipe.lora_rank} on {recipe.bits} bit weights" if recipe.lora_rank else "every weight, in bf16"
    rows = f"{args.rows} rows x {args.accumulation} accumulation x {args.ranks} ranks, up to {args.seq:,} tokens a row"
    lines = [f"{recipe.shape.layers} layers of width {recipe.shape.hidden}; {kind}", rows, ""]
    if forecast.epoch is not None:
        lines += [*_epoch_text(forecast.epoch), ""]
    elif args.dataset is not None:
        lines += ["The data set does not fill one step: rows are taken to be full.", ""]
    lines += _memory_text(args, recipe, forecast)
    if forecast.plan is None:
        return lines
    scaling = (
        _scaling_text(forecast.scaling, args.gpu) if forecast.scaling else [f"No times: no peak of {args.gpu!r}."]
    )
    given = ["To follow that plan without trying others:", f"export UNSLOTH_ACCEL_PLAN='{_step_plan(forecast.plan)}'"]
    return [*lines, "", *scaling, "", *given, "", *_launch_command(args.ranks)]


def _epoch_text(epoch: "Epoch") -> list[str]:
    return [
        f"an epoch: {epoch.steps:,} steps, {epoch.tokens:,} tokens, rows of up to {epoch.longest_row:,}",
        f"padding: none where batches are padding-free, {epoch.padding:.0%} where they are padded",
        f"slowest rank over the mean: {epoch.plain_imbalance:.3f} as the rows come, {epoch.imbalance:.3f} balanced",
    ]


def _memory_text(args: argparse.Namespace, recipe: "Recipe", forecast: "Forecast") -> list[str]:
    limit = f"{forecast.room:.1f} of {args.gpu_memory:g} GiB"
    if forecast.plan is None:
        needs = f"One row with every layer recomputed needs {forecast.least.peak:.1f} GiB, a run may use {limit}."
        return [
            needs,
            "Train adapters, without --full." if args.full else "Lower --seq or --lora-rank, or take --bits 4.",
        ]
    memory = forecast.plan.memory
    parts = ("weights", "adapters", "gradients", "optimizer", "reduction", "layer", "peak")
    names = {"layer": "a layer that is kept", "peak": "peak of a rank"}
    lines = [f"{names.get(part, part):<22} {getattr(memory, part):8.2f} GiB" for part in parts]
    lines += ["", f"Plans that fit into {limit}; the one with * is what a run begins with:"]
    lines += [f"  {'pieces':>6} {'tokens':>9} {'layers kept':>12} {'peak GiB':>9}"]
    for plan in forecast.plans:
        mark, one = "*" if plan is forecast.plan else " ", plan.candidate
        kept = f"{one.layers_kept} of {recipe.shape.layers}"
        lines.append(f"{mark} {one.pieces or 0:>6} {one.tokens or 0:>9,} {kept:>12} {plan.memory.peak:>9.1f}")
    return lines


def _scaling_text(rows: "tuple[ScalingRow, ...]", gpu: str) -> list[str]:
    lines = [f"The same rows on each rank, {gpu}, 8 to a host; estimated:"]
    lines += ["  ranks    rows a step  steps  imbalance  compute ms  reduction ms    tokens/s  a rank, against one"]
    for row in rows:
        steps = "" if row.steps is None else f"{row.steps:,}"
        imbalance = "" if row.imbalance is None else f"{row.imbalance:.3f}"
        lines.append(
            f"  {row.ranks:>5,} {row.rows:>14,} {steps:>6} {imbalance:>10} {row.compute_ms:>11.1f} "
            f"{row.reduction_ms:>13.1f} {row.tokens_per_second:>11,.0f} {row.efficiency:>11.0%}"
        )
    if rows[0].bound_by == "host":
        lines += ["The GPU waits for its host, which starts the kernels: longer rows, or more of them, come for free."]
    return lines
