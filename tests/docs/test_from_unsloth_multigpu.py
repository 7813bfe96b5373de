"""Every name of unsloth-multigpu 1.0.0 has a place in the page for people who come from it."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from unsloth_accel import MultiGPUConfig


PAGE = (Path(__file__).resolve().parents[2] / "docs" / "from_unsloth_multigpu.md").read_text()
THERE = " ".join(re.findall(r"^\| (.*?) \| ", PAGE, re.MULTILINE))  # the left column

FUNCTIONS = """
    enable_multi_gpu disable_multi_gpu is_multi_gpu_enabled get_multi_gpu_status get_active_config
    enable_selekt disable_selekt get_selekt_status enable_grpo_support launch_ddp_training
"""
CLASSES = """
    DDPManager DDPTrainer DDPLauncher MemoryManager TrainingHooks LoaderHooks TrainerHooks GRPOHooks
    MultiGPUManager MultiGPUTrainer BatchSharding GradientAggregator AggregationMethod DeviceManager MultiGPULogger
"""
CONFIG_FIELDS = """
    enabled num_gpus device_ids batch_size_per_gpu gradient_accumulation_steps max_steps num_train_epochs
    learning_rate weight_decay warmup_steps enable_gradient_checkpointing enable_mixed_precision ddp_backend
    ddp_timeout_minutes find_unused_parameters memory_optimization memory_warning_threshold memory_critical_threshold
    enable_auto_cleanup cleanup_interval enable_cudnn_benchmark enable_tf32 pin_memory num_workers log_level log_dir
    enable_wandb wandb_project save_steps eval_steps max_retries retry_delay enable_fault_tolerance
"""
OPTIONS = (
    "enable_memory_optimization debug gradient_aggregation batch_sharding_strategy memory_efficient enable_profiling"
)
COMMANDS = "unsloth-multigpu-test unsloth-multigpu-config run_all_tests.py --quick install.sh verify_installation.py"
EXAMPLES = """
    quick_start.py ddp_quick_start.py advanced_config.py direct_trainer_usage.py grpo_multi_gpu_training.py
    grpo_open_r1_multi_gpu.py selekt_training.py start_with_llamafactory_dataset.py verify_installation.py
"""


@pytest.mark.parametrize("names", [FUNCTIONS, CLASSES, CONFIG_FIELDS, OPTIONS, COMMANDS, EXAMPLES])
def test_every_name_has_its_place(names: str) -> None:
    assert [name for name in names.split() if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", THERE)] == []


def test_fields_that_are_here_too_are_named() -> None:
    assert [field.name for field in fields(MultiGPUConfig) if f"`{field.name}`" not in PAGE] == []
