"""Runs on a CUDA device: every precision learns, and a run that is stopped ends as one that never was."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from stopped_runs import assert_same_outcome, in_sessions

from rst.experiments.spec import RunSpec
from rst.experiments.training import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

Config = Callable[..., RunSpec]


@pytest.mark.parametrize("precision", ["autocast=null", "autocast=bfloat16", "autocast=float16", "tf32=true"])
@pytest.mark.parametrize("variant", ["sam", "gsam", "ssam_f"])
def test_a_run_learns_in_every_precision(config: Config, precision: str, variant: str) -> None:
    record = train(
        config("device=cuda", precision, f"variant={variant}", "channels_last=true", "recipe.epochs=4"),
        show_progress=False,
    )
    assert record.summary["test_error"] < 80
    assert record.summary["peak_memory_bytes"] > 0


@pytest.mark.parametrize("network", ["model=wrn10_1", "model=vit_ti"])
def test_with_deterministic_kernels_a_stopped_run_ends_as_one_that_never_was(
    config: Config, tmp_path: Path, network: str
) -> None:
    more = ("device=cuda", "deterministic=true", "recipe.perturbation_batch=null")
    images = ("dataset=cifar10", "dataset.source=digits", "scale=smoke", network)
    whole = train(config(*images, *more, f"paths.runs={tmp_path / 'whole'}"), show_progress=False)
    assert_same_outcome(in_sessions(config(*images, *more), 1), whole)
