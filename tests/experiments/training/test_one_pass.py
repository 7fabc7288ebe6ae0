"""Plain steps are one pass of the whole batch where that gives what their micro-batches give."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import on_ranks
from test_ranks import assert_equal_runs, train_in_double
from test_step import trained_by_hand
from torch import Tensor, nn

import rst
from rst.experiments.build import build_model
from rst.experiments.runs.record import Record
from rst.experiments.spec import RunSpec
from rst.experiments.training import checkpoint, train
from rst.experiments.training.step import TrainingStep, mixes_images

Config = Callable[..., RunSpec]

VIT = ("model=vit_ti", "model.width=24", "model.depth=1", "recipe.warmup_epochs=0", "recipe.perturbation_batch=8")
WITHOUT_DROPOUT = (*VIT, "model.dropout=0.0", "optimizer=sgd", "optimizer.lr=0.02")
SHORT = ("recipe.epochs=2", "recipe.batch_size=32")


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each pass of the training steps has had, without those of the warm-up."""
    seen: list[int] = []
    losses, warm_up = TrainingStep.losses, TrainingStep.warm_up

    def noted_losses(self: TrainingStep, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(len(x))
        return losses(self, x, y)

    def noted_warm_up(self: TrainingStep, images: Tensor, labels: Tensor) -> None:
        warm_up(self, images, labels)
        seen.clear()

    monkeypatch.setattr(TrainingStep, "losses", noted_losses)
    monkeypatch.setattr(TrainingStep, "warm_up", noted_warm_up)
    return seen


def gate_of(spec: RunSpec) -> list[bool]:
    return rst.RST(nn.Linear(1, 1), 0.1, spec.p, total_steps=spec.total_steps, seed=spec.seed).gate.tolist()


@pytest.mark.parametrize("scheme", ["sgd", "sam", "grst"])
def test_without_batch_norm_and_dropout_each_plain_step_is_one_pass(
    config: Config, passes: list[int], scheme: str
) -> None:
    spec = config(*WITHOUT_DROPOUT, *SHORT, f"scheme={scheme}", "seed=2")
    train(spec, show_progress=False)
    assert passes == [n for sharp in gate_of(spec) for n in ([8] * 8 if sharp else [32])]


@pytest.mark.parametrize(
    "more",
    [("recipe.perturbation_batch=8",), VIT, (*WITHOUT_DROPOUT, "scheme=rst", "schedule=ae_sam")],
    ids=["batch norm", "dropout", "a gate that decides after the clean pass"],
)
def test_plain_steps_keep_their_micro_batches_with(config: Config, passes: list[int], more: tuple[str, ...]) -> None:
    train(config("scheme=sgd", *SHORT, *more), show_progress=False)
    assert set(passes) == {8}


@pytest.mark.parametrize("scheme", ["sgd", "sam", "gnr", "rst", "grst"])
def test_a_run_is_the_plain_training_on_batch_over_m_devices(config: Config, scheme: str) -> None:
    """The oracle is that of the micro-batches."""
    recipe = {"rho": 0.1, "l2": 0.05, "clip_norm": 1.5}
    keys = [f"recipe.{key}={value}" for key, value in recipe.items()]
    spec = config(*WITHOUT_DROPOUT, f"scheme={scheme}", *keys, "optimizer.momentum=0.9", "optimizer.nesterov=true")
    record = train(spec, show_progress=False)
    torch.testing.assert_close(checkpoint.load(record.checkpoint)["model"], trained_by_hand(spec), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("scheme", ["sgd", "grst"])
def test_weights_and_every_line_of_the_metrics_are_those_of_micro_batches(
    config: Config, tmp_path: Path, scheme: str
) -> None:
    more = (*WITHOUT_DROPOUT, *SHORT, f"scheme={scheme}", "seed=2")
    fast = train_in_double(config(*more))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rst.experiments.training.step.mixes_images", lambda model: True)
        plain = train_in_double(config(*more, f"paths.runs={tmp_path / 'plain'}"))
    assert_equal_runs(plain, fast)
    assert fast.summary["propagations"] == plain.summary["propagations"]


@pytest.mark.parametrize("scheme", ["sgd", "grst"])
def test_two_ranks_make_the_run_of_one_device(config: Config, tmp_path: Path, scheme: str) -> None:
    more = (*WITHOUT_DROPOUT, *SHORT, f"scheme={scheme}", "seed=2")
    one = train_in_double(config(*more))
    spec = config(*more, "devices=2", f"paths.runs={tmp_path / '2'}")
    several = on_ranks(train_in_double, (spec,), (spec,))[0]
    assert isinstance(several, Record), several
    assert_equal_runs(one, several)


class FirstStep(Exception):
    """The warm-up is over."""


def first_step(*_: object) -> None:
    raise FirstStep


def test_the_pass_of_the_whole_batch_is_warmed_up_where_a_run_has_one(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    losses = TrainingStep.losses
    monkeypatch.setattr(TrainingStep, "losses", lambda self, x, y: seen.append(len(x)) or losses(self, x, y))
    monkeypatch.setattr(TrainingStep, "__call__", first_step)
    for scheme, sizes in {"sgd": [8, 32], "rst": [8, 32, 8, 8], "sam": [8, 8, 8]}.items():
        seen.clear()
        with pytest.raises(FirstStep):
            train(config(*WITHOUT_DROPOUT, *SHORT, f"scheme={scheme}"), show_progress=False)
        assert seen == sizes


@pytest.mark.parametrize(
    ("module", "mixes"),
    [
        (nn.BatchNorm1d(3), True),
        (nn.BatchNorm2d(3, track_running_stats=False), True),
        (nn.SyncBatchNorm(3), True),
        (nn.utils.parametrizations.spectral_norm(nn.Linear(3, 2)), True),
        (nn.LayerNorm(3), False),
        (nn.GroupNorm(1, 3), False),
        (nn.InstanceNorm2d(3), False),
    ],
    ids=lambda value: "" if isinstance(value, bool) else type(value).__name__,
)
def test_images_may_meet_in_batch_norm_and_in_buffers(module: nn.Module, mixes: bool) -> None:
    assert mixes_images(nn.Sequential(nn.Linear(3, 3), module)) == mixes


@pytest.mark.parametrize(("model", "mixes"), [("vit_s", False), ("resnet18", True), ("vgg16_bn", True)])
def test_of_the_networks_of_the_paper_vits_alone_treat_each_image_by_itself(
    config: Config, model: str, mixes: bool
) -> None:
    spec = config("dataset=cifar10", "dataset.source=digits", "scale=smoke", f"model={model}")
    assert mixes_images(build_model(spec, torch.device("cpu"))) == mixes
