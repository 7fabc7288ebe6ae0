"""Before the clock starts, every kind of pass that a run has is compiled and tuned, and no trace of that is left."""

from collections.abc import Callable

import pytest
import torch
from textbook import assert_bitwise
from torch import Tensor

from rst.experiments.models import WideResNet
from rst.experiments.spec import RunSpec
from rst.experiments.training import loop, train
from rst.experiments.training.step import TrainingStep

Config = Callable[..., RunSpec]
Pass = tuple[int, bool, bool]
"""Of a pass: how many images, whether in training mode, and whether with gradients."""

VARIANTS = ["sam", "asam", "friendly", "gsam", "looksam", "esam", "ssam_f", "ssam_d"]


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> tuple[set[Pass], set[Pass]]:
    """The kinds of passes of a run, in its warm-up and in its steps."""
    in_warm_up: set[Pass] = set()
    in_steps: set[Pass] = set()
    now = in_steps
    warm_up, forward, losses = TrainingStep.warm_up, WideResNet.forward, TrainingStep.losses
    training = False

    def noted_warm_up(self: TrainingStep, images: Tensor, labels: Tensor) -> None:
        nonlocal now
        now = in_warm_up
        warm_up(self, images, labels)
        now = in_steps

    def noted_losses(self: TrainingStep, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal training
        training = True  # Evaluations of the test images call the network by themselves.
        result = losses(self, x, y)
        training = False
        return result

    def noted_forward(self: WideResNet, x: Tensor) -> Tensor:
        if training:
            now.add((len(x), self.training, torch.is_grad_enabled()))
        return forward(self, x)

    monkeypatch.setattr(TrainingStep, "warm_up", noted_warm_up)
    monkeypatch.setattr(TrainingStep, "losses", noted_losses)
    monkeypatch.setattr(WideResNet, "forward", noted_forward)
    return in_warm_up, in_steps


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_pass_of_a_run_is_warmed_up(
    config: Config, kinds: tuple[set[Pass], set[Pass]], variant: str
) -> None:
    train(config("scheme=sam", f"variant={variant}", "recipe.epochs=1"), show_progress=False)
    in_warm_up, in_steps = kinds
    assert in_warm_up == in_steps
    assert (16, True, True) in in_steps


def test_without_sharp_steps_there_are_plain_passes_alone(config: Config, kinds: tuple[set[Pass], set[Pass]]) -> None:
    train(config("scheme=sgd", "recipe.epochs=1"), show_progress=False)
    assert kinds == ({(16, True, True)}, {(16, True, True)})


def state_of(run: loop.Run) -> list[object]:
    """All that a run goes on from: weights, buffers, gradients, counters, sums and random numbers."""
    state = run.state
    parts = [getattr(state, name).state_dict() for name in ("model", "optimizer", "scaler", "method", "sums")]
    gradients = [parameter.grad for parameter in state.model.parameters()]
    passes = [state.method.forward_passes, state.method.backward_passes, state.method.t]
    return [*parts, gradients, passes, vars(state.counters), torch.get_rng_state()]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("more", [(), ("autocast=float16",)], ids=["float32", "a loss scaler"])
def test_the_warm_up_leaves_no_trace(
    config: Config, monkeypatch: pytest.MonkeyPatch, variant: str, more: tuple[str, ...]
) -> None:
    monkeypatch.setattr(loop.Run, "to_the_end", lambda run: runs.append(run))
    runs: list[loop.Run] = []
    train(config("scheme=grst", f"variant={variant}", *more), show_progress=False)
    [run] = runs
    images, labels = next(run.loader.epoch(0))
    before = [copied(part) for part in state_of(run)]
    run.train_step.warm_up(images, labels)
    assert_same(state_of(run), before)


def copied(part: object) -> object:
    return torch.utils._pytree.tree_map_only(Tensor, lambda value: value.detach().clone(), part)


def assert_same(parts: list[object], expected: list[object]) -> None:
    leaves, structure = torch.utils._pytree.tree_flatten(parts)
    expected_leaves, expected_structure = torch.utils._pytree.tree_flatten(expected)
    assert structure == expected_structure
    for leaf, expected_leaf in zip(leaves, expected_leaves, strict=True):
        if isinstance(leaf, Tensor):
            assert_bitwise(leaf, expected_leaf)
        else:
            assert leaf == expected_leaf


@pytest.mark.parametrize("variant", ["sam", "looksam", "esam", "ssam_f"])
def test_a_compiled_run_compiles_nothing_after_its_warm_up(
    config: Config, monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    compiled = 0
    in_warm_up: list[int] = []
    compile_, warm_up = torch.compile, TrainingStep.warm_up

    def counted(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        nonlocal compiled
        compiled += 1
        return graph.forward

    def noted(self: TrainingStep, images: Tensor, labels: Tensor) -> None:
        warm_up(self, images, labels)
        in_warm_up.append(compiled)

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", lambda model: compile_(model, backend=counted))
    monkeypatch.setattr(TrainingStep, "warm_up", noted)
    train(config("compile=true", "scheme=sam", f"variant={variant}"), show_progress=False)
    assert in_warm_up == [compiled]
    assert compiled > 0
