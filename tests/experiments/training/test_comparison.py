"""Ranks never disagree in silence: each names what differs and on which rank, and nothing is trained on it."""

import shutil
from typing import Any

import pytest
import torch
from conftest import on_ranks
from torch import Tensor

import rst
from rst.experiments.build import build_model
from rst.experiments.data.sources import load
from rst.experiments.errors import InputError
from rst.experiments.runs.record import Diverged, Record, open_record
from rst.experiments.spec import RunSpec
from rst.experiments.training import checkpoint, comparison, train
from rst.experiments.training.comparison import compare
from rst.experiments.training.ranks import ALONE, World
from rst.experiments.training.step import TrainingStep

STEP = "rst.experiments.training.loop.TrainingStep"


def trained_with(place: str, value: Any, spec: RunSpec) -> Record:
    """The run, with the value at an import path replaced on this rank alone."""
    with pytest.MonkeyPatch.context() as patch:
        if place:
            patch.setattr(place, value)
        return train(spec, show_progress=False)


def refusals(one: tuple, other: tuple, kind: type = InputError) -> tuple[str, str]:
    """What the two ranks say, each with something of its own replaced."""
    errors = on_ranks(trained_with, one, other)
    assert [type(error) for error in errors] == [kind, kind], errors
    assert sorted(error.repeated for error in errors) == [False, True]  # One of them prints it.
    return str(errors[0]), str(errors[1])


SAME = ("", None)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("seed=1", "the ranks differ in seed: 1 on rank 1, 0 on rank 0; start all ranks with the same command."),
        ("recipe.rho=0.7", "in recipe.rho: 0.7 on rank 1, 0.6 on rank 0; "),
        ("evaluate_every=2", "in evaluate_every: 2 on rank 1, 1 on rank 0; "),
        ("variant=asam", "in variant.name: asam on rank 1, sam on rank 0; "),
    ],
)
def test_another_config_is_refused(config, more, words):
    spec = config("devices=2")
    first, second = refusals((*SAME, spec), (*SAME, config("devices=2", more)))
    assert first == second
    assert words in first
    assert not open_record(spec).folder.exists()


def other_labels(*arguments: Any, **options: Any) -> Any:
    dataset = load(*arguments, **options)
    dataset.train.labels[7] = (dataset.train.labels[7] + 1) % 10
    return dataset


def other_weights(*arguments: Any) -> torch.nn.Module:
    model = build_model(*arguments)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-7
    return model


def other_order(images: int, seed: int, epoch: int) -> Tensor:
    return torch.arange(images)


DIFFERENCES = {
    "the data": ("rst.experiments.data.run_data.load", other_labels),
    "the initial weights": ("rst.experiments.training.loop.build_model", other_weights),
    "the order of the images": ("rst.experiments.training.comparison.order_of_epoch", other_order),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_difference_is_refused_and_named(config, name):
    spec = config("devices=2")
    first, second = refusals((*SAME, spec), (*DIFFERENCES[name], spec))
    assert first == second
    assert first.startswith(f"the ranks differ in {name}: ")
    assert " on rank 1, " in first
    assert not open_record(spec).folder.exists()


def test_another_version_of_the_code_is_refused(config, tmp_path):
    copy = tmp_path / "rst"
    shutil.copytree(comparison.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    assert comparison.digest_of_code(copy) == comparison.digest_of_code(comparison.PACKAGE)
    (copy / "method.py").write_text((copy / "method.py").read_text() + "# changed\n")
    spec = config("devices=2")
    first, second = refusals((*SAME, spec), ("rst.experiments.training.comparison.PACKAGE", copy, spec))
    assert first == second
    assert first.startswith("the ranks differ in the code: ")
    assert first.endswith("; install one version of it on all hosts.")


class OtherGate(rst.RST):
    """A method whose gate draws from another seed."""

    def __init__(self, *arguments, seed: int, **options) -> None:
        super().__init__(*arguments, seed=seed + 1, **options)


def test_another_gate_is_refused(config):
    spec = config("devices=2")
    first, _ = refusals((*SAME, spec), ("rst.experiments.build.rst.RST", OtherGate, spec))
    assert first.startswith("the ranks differ in the gate: ")


class Drifts(TrainingStep):
    """A step that moves a weight after step 4, as a rank that miscomputes would."""

    def __call__(self, images: Tensor, labels: Tensor) -> None:
        super().__call__(images, labels)
        if self.state.counters.step == 4:
            with torch.no_grad():
                next(self.state.model.parameters()).view(-1)[0] += 1e-6


def test_weights_that_drift_apart_are_found_at_the_checkpoint_and_never_written(config):
    spec = config("devices=2")
    first, second = refusals((*SAME, spec), (STEP, Drifts, spec))
    assert first == second
    assert first.startswith("the ranks differ after step 6 in the weights: ")
    record = open_record(spec)
    assert not record.done
    assert checkpoint.load(record.checkpoint)["counters"]["step"] < 5


# ---------------------------------------------------------------------- gradients that are not finite on one rank alone


class InfiniteLoss(TrainingStep):
    """A step whose losses are infinite at step 4, in the first pass or in the second."""

    in_pass = 1
    at, passes = -1, 0

    def losses(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        losses, logits = super().losses(x, y)
        step = self.state.counters.step
        self.passes = self.passes + 1 if self.at == step else 1
        self.at = step
        if (step, self.passes) == (4, self.in_pass):
            (open_record(self.spec).folder / "spoilt").touch()
            losses = self.spoilt(losses)
        return losses, logits

    def spoilt(self, losses: Tensor) -> Tensor:
        return losses * torch.inf


class InfiniteGradient(InfiniteLoss):
    """A step whose losses are finite, but not their gradient."""

    factor = torch.inf

    def spoilt(self, losses: Tensor) -> Tensor:
        losses.register_hook(lambda gradient: gradient * self.factor)
        return losses


class NanGradient(InfiniteGradient):
    factor = torch.nan


class InfinitePerturbedLoss(InfiniteLoss):
    in_pass = 2


class InfinitePerturbedGradient(InfiniteGradient):
    in_pass = 2


class NanPerturbedGradient(NanGradient):
    in_pass = 2


LOSSES = [InfiniteLoss, InfinitePerturbedLoss]
GRADIENTS = [InfiniteGradient, NanGradient, InfinitePerturbedGradient, NanPerturbedGradient]
ONE_PERTURBATION = ("devices=2", "scheme=sam", "recipe.perturbation_batch=16")


@pytest.mark.parametrize("spoilt", LOSSES + GRADIENTS)
def test_one_rank_whose_loss_or_gradient_is_not_finite_stops_all_at_the_same_step(config, spoilt):
    spec = config(*ONE_PERTURBATION)
    first, second = refusals((*SAME, spec), (STEP, spoilt, spec), Diverged)
    assert first == second
    assert "the loss is not finite" in first
    assert open_record(spec).divergence == first
    assert checkpoint.load(open_record(spec).checkpoint)["counters"]["step"] < 5


@pytest.mark.parametrize("spoilt", GRADIENTS)
def test_under_a_loss_scaler_all_ranks_skip_the_step_and_keep_equal_weights(config, spoilt):
    """Weights that differ would be refused at the checkpoint."""
    small = ("dataset.train_images=24", "recipe.batch_size=8", "recipe.perturbation_batch=4")
    spec = config("devices=2", "scheme=sam", "autocast=float16", *small)
    records = on_ranks(trained_with, (*SAME, spec), (STEP, spoilt, spec))
    assert isinstance(records[0], Record), records
    assert (records[0].folder / "spoilt").exists()
    assert all(value.isfinite().all() for value in checkpoint.load(records[0].checkpoint)["model"].values())


# ------------------------------------------------------------------------------------------------- the comparison alone


class Fixed(World):
    """Some ranks, whose facts are given."""

    def __init__(self, *facts: dict[str, Any]) -> None:
        self.facts, self.size = list(facts), len(facts)

    def gather(self, value: Any) -> list[Any]:
        return self.facts


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ("aab", "b on rank 2, a on rank 0"),
        ("aba", "b on rank 1, a on rank 0"),
        ("baa", "b on rank 0, a on rank 1"),
        ("ab", "b on rank 1, a on rank 0"),
        ([None, "a", "a"], "None on rank 0, a on rank 1"),
    ],
)
def test_the_rank_that_is_named_is_the_one_that_differs_from_the_most(values, words):
    world = Fixed(*[{"key": value} if value else {} for value in values])
    with pytest.raises(InputError, match=f"key: {words}; "):
        compare(world, lambda: {})


def test_a_run_of_one_rank_does_not_compute_its_facts():
    compare(ALONE, lambda: pytest.fail("it did"))
