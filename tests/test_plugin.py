"""The plugin: where a field's value comes from, what is refused, and what Accelerate is given."""

from collections.abc import Sequence
from typing import Any

import pytest

from unsloth_accel import (
    ConfigurationError,
    MultiGPUConfig,
    StepPlan,
    StepPlanRecord,
    UnslothAcceleratorPlugin,
)
from unsloth_accel.drop_in.config import FIELDS as MULTI_GPU_FIELDS
from unsloth_accel.plugin import MULTI_GPU_FIELDS as MULTI_GPU_VARIABLES
from unsloth_accel.plugin import PLUGIN_FIELDS


# field, its default, a value given as an argument, the text of another one in the environment, and what that means
FIELDS = [
    ("gradient_sync", "auto", "overlapped", "deferred", "deferred"),
    ("comm_hook", "no", "bf16", "fp16", "fp16"),
    ("find_unused_parameters", None, False, "true", True),
    ("static_graph", None, True, "0", False),
    ("gradient_as_bucket_view", None, True, "No", False),
    ("plan", None, StepPlan(pieces=1), "keep", "keep"),
    ("plan", None, "auto", '{"pieces": 2, "layers_kept": 3}', StepPlan(pieces=2, layers_kept=3)),
    ("balance", None, False, "yes", True),
    ("memory_margin", 0.1, 0.5, "0.25", 0.25),
    ("on_oom", "split", "raise", "split", "split"),
    ("stall_timeout", 110.0, 10, "inf", float("inf")),
]
CHOICES = {
    "gradient_sync": ["'auto'", "'deferred'", "'overlapped'"],
    "comm_hook": ["'no'", "'bf16'", "'fp16'"],
    "plan": ["'auto'", "'keep'"],
    "on_oom": ["'split'", "'raise'"],
    "memory_margin": ["a number from 0 to below 1"],
    "resume": ["'auto'"],
    "stall_timeout": ["a number of seconds, at least 10"],
}


def variable(field: str) -> str:
    return f"UNSLOTH_ACCEL_{field.upper()}"


@pytest.fixture(autouse=True)
def nothing_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in PLUGIN_FIELDS:
        monkeypatch.delenv(variable(field), raising=False)


def test_every_field_is_tested_here() -> None:
    assert set(PLUGIN_FIELDS) == {"resume", *(field for field, *_ in FIELDS)}


def test_resume_is_asked_for_by_the_argument_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert UnslothAcceleratorPlugin().resume is None
    assert UnslothAcceleratorPlugin(resume="auto").resume == "auto"
    monkeypatch.setenv(variable("resume"), "auto")
    assert UnslothAcceleratorPlugin().resume == "auto"


@pytest.mark.parametrize(("field", "default", "given", "text", "meant"), FIELDS)
def test_a_field_comes_from_the_argument_else_the_environment_else_the_default(
    field: str, default: object, given: Any, text: str, meant: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert getattr(UnslothAcceleratorPlugin(), field) == default
    monkeypatch.setenv(variable(field), text)
    assert getattr(UnslothAcceleratorPlugin(), field) == meant
    assert getattr(UnslothAcceleratorPlugin(**{field: given}), field) == given
    assert given != meant


@pytest.mark.parametrize("text", ["1", "true", "True", "YES", "0", "false", "No"])
def test_the_environment_spells_booleans_in_many_ways(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable("static_graph"), text)
    assert UnslothAcceleratorPlugin().static_graph is (text.lower() in ("1", "true", "yes"))


@pytest.mark.parametrize("source", ["argument", "environment"])
@pytest.mark.parametrize("field", PLUGIN_FIELDS)
def test_a_bad_value_is_refused_by_name_with_what_is_allowed(
    field: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: dict[str, Any] = {field: "sideways"} if source == "argument" else {}
    if source == "environment":
        monkeypatch.setenv(variable(field), "sideways")
    with pytest.raises(ConfigurationError) as caught:
        UnslothAcceleratorPlugin(**arguments)
    message = str(caught.value)
    assert f"`{field if source == 'argument' else variable(field)}`" in message
    assert "got 'sideways'" in message
    for allowed in CHOICES.get(field, ["true", "false"]):
        assert allowed in message


@pytest.mark.parametrize("config", [UnslothAcceleratorPlugin, MultiGPUConfig])
def test_a_misspelt_variable_is_refused_with_the_nearest(config: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for field in MULTI_GPU_FIELDS:
        monkeypatch.delenv(variable(field), raising=False)
    monkeypatch.setenv(variable("gradient_sync"), "deferred")
    monkeypatch.setenv(variable("num_gpus"), "2")
    config()
    monkeypatch.setenv(variable("gradient_synch"), "deferred")
    with pytest.raises(ConfigurationError, match=r"`UNSLOTH_ACCEL_GRADIENT_SYNCH` .*Did you mean .*GRADIENT_SYNC`\?"):
        config()


def test_the_variables_of_both_configurations_are_known() -> None:
    assert MULTI_GPU_VARIABLES == MULTI_GPU_FIELDS


@pytest.mark.parametrize("value", ["true", 1, 0])
def test_an_argument_that_only_looks_like_a_boolean_is_refused(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"`static_graph` must be true or false, got {value!r}"):
        UnslothAcceleratorPlugin(static_graph=value)


def test_a_hook_and_deferred_gradients_exclude_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match=r"`comm_hook='bf16'` .* `gradient_sync='deferred'`"):
        UnslothAcceleratorPlugin(gradient_sync="deferred", comm_hook="bf16")
    monkeypatch.setenv(variable("comm_hook"), "fp16")
    with pytest.raises(ConfigurationError, match="`comm_hook='fp16'`"):
        UnslothAcceleratorPlugin(gradient_sync="deferred")
    assert UnslothAcceleratorPlugin(gradient_sync="overlapped").comm_hook == "fp16"


def test_a_static_graph_and_deferred_gradients_exclude_each_other() -> None:
    with pytest.raises(ConfigurationError, match=r"`static_graph=True` .* `gradient_sync='deferred'`"):
        UnslothAcceleratorPlugin(gradient_sync="deferred", static_graph=True)
    assert not UnslothAcceleratorPlugin(gradient_sync="deferred", static_graph=False).static_graph


def test_a_plan_says_itself_whether_it_balances() -> None:
    with pytest.raises(ConfigurationError, match="`balance=False` is given beside a `plan`"):
        UnslothAcceleratorPlugin(plan=StepPlan(), balance=False)


def test_the_record_of_a_run_can_be_given_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = StepPlan(pieces=2, tokens=4096, layers_kept=7)
    record = StepPlanRecord(plan=plan, reason="the only one that fits", layers=16)
    assert UnslothAcceleratorPlugin(plan=record).plan == plan
    for text in (record.to_json(), plan.to_json()):
        monkeypatch.setenv(variable("plan"), text)
        assert UnslothAcceleratorPlugin().plan == plan
    for text in ('{"pieces": 2', '{"layers": 2}', '{"plan": 2}'):
        monkeypatch.setenv(variable("plan"), text)
        with pytest.raises(ConfigurationError, match="`plan` must be a JSON object of pieces, tokens, layers"):
            UnslothAcceleratorPlugin()


def test_a_plan_says_what_it_changes() -> None:
    kept = StepPlanRecord(plan=StepPlan(balance=False), reason="`plan` is 'keep'", layers=28)
    assert str(kept) == "micro-batches as given, rows as they come; `plan` is 'keep'"
    found = StepPlanRecord(plan=StepPlan(pieces=1, tokens=4096, layers_kept=7), reason="the fastest", layers=28)
    assert str(found) == (
        "1 piece of at most 4,096 tokens, 7 layers not recomputed, rows balanced; of 28 layers; the fastest"
    )


def test_an_unknown_field_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="gradient_synch"):
        UnslothAcceleratorPlugin(gradient_synch="auto")  # type: ignore[call-arg]


def test_fields_are_named_never_counted() -> None:
    with pytest.raises(TypeError, match="positional"):
        UnslothAcceleratorPlugin("auto")  # type: ignore[call-arg]


def test_the_users_own_handlers_stay_with_their_values() -> None:
    from accelerate.utils import DistributedDataParallelKwargs, GradScalerKwargs

    scaler = GradScalerKwargs(init_scale=16.0)
    given = DistributedDataParallelKwargs(bucket_cap_mb=7, static_graph=True)
    same, ddp = UnslothAcceleratorPlugin(find_unused_parameters=True).to_handlers([scaler, given])
    assert same is scaler
    assert isinstance(ddp, DistributedDataParallelKwargs)
    assert (ddp.bucket_cap_mb, ddp.static_graph, ddp.find_unused_parameters) == (7, True, True)
    assert given.to_kwargs() == {"bucket_cap_mb": 7, "static_graph": True}, "else ours would be the user's, next time"


@pytest.mark.parametrize("given", [None, []])
def test_without_a_ddp_handler_one_is_made(given: Sequence[Any] | None) -> None:
    from accelerate.utils import DDPCommunicationHookType, DistributedDataParallelKwargs

    plugin = UnslothAcceleratorPlugin(comm_hook="bf16", gradient_as_bucket_view=True)
    (handler,) = plugin.to_handlers(given)
    assert type(handler) is DistributedDataParallelKwargs
    assert handler.to_kwargs() == {"gradient_as_bucket_view": True}
    assert handler.comm_hook is DDPCommunicationHookType.BF16
    assert not given, "the user's own list is left alone"


def test_fields_left_alone_do_not_touch_the_handler() -> None:
    from accelerate.utils import DistributedDataParallelKwargs

    given = DistributedDataParallelKwargs(static_graph=True, find_unused_parameters=True)
    before = given.to_kwargs()
    UnslothAcceleratorPlugin().to_handlers([given])
    assert given.to_kwargs() == before


def test_the_ddp_handler_is_accepted_by_accelerate_itself() -> None:
    """Accelerate looks handlers up by exact class: what the plugin makes must be one it knows."""
    from accelerate import Accelerator

    plugin = UnslothAcceleratorPlugin(find_unused_parameters=True, comm_hook="fp16")
    assert Accelerator(cpu=True, kwargs_handlers=plugin.to_handlers(None)).ddp_handler.find_unused_parameters
