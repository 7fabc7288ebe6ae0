"""Ranks never disagree in silence: what differs is named with its rank on all of them, and nothing is trained on it."""

import shutil
from typing import Any

import pytest
import torch
from conftest import on_ranks
from omegaconf import DictConfig
from torch import Tensor

from rst.experiments.config import InputError
from rst.experiments.record import Record, open_record
from rst.training import agreement, checkpoint, data, loop, train
from rst.training.agreement import Lookout, compare
from rst.training.distributed import ALONE, World


def trained_with(name: str, value: Any, cfg: DictConfig) -> Record:
    """The run, with a part of `rst.training` replaced on this rank alone."""
    with pytest.MonkeyPatch.context() as patch:
        if name:
            patch.setattr(f"rst.training.{name}", value)
        return train(cfg, show_progress=False)


def refusals(one: tuple, other: tuple) -> tuple[str, str]:
    """What the two ranks say, each with something of its own replaced."""
    errors = on_ranks(trained_with, one, other)
    assert [type(error) for error in errors] == [InputError, InputError], errors
    assert sorted(error.repeated for error in errors) == [False, True]  # one of them tells it
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
    cfg = config("devices=2")
    first, second = refusals((*SAME, cfg), (*SAME, config("devices=2", more)))
    assert first == second
    assert words in first
    assert not open_record(cfg).folder.exists()


def other_labels(*arguments: Any, **options: Any) -> Any:
    dataset = real_load(*arguments, **options)
    dataset.train.labels[7] = (dataset.train.labels[7] + 1) % 10
    return dataset


real_load = data.load


def other_weights(*arguments: Any) -> torch.nn.Module:
    model = real_build_model(*arguments)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-7
    return model


real_build_model = loop.build_model


def other_order(images: int, seed: int, epoch: int) -> Tensor:
    return torch.arange(images)


DIFFERENCES = {
    "the data": ("data.load", other_labels),
    "the initial weights": ("loop.build_model", other_weights),
    "the order of the images": ("agreement.order_of_epoch", other_order),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_difference_is_refused_and_named(config, name):
    cfg = config("devices=2")
    first, second = refusals((*SAME, cfg), (*DIFFERENCES[name], cfg))
    assert first == second
    assert first.startswith(f"the ranks differ in {name}: ")
    assert " on rank 1, " in first
    assert not open_record(cfg).folder.exists()


def test_another_version_of_the_code_is_refused(config, tmp_path):
    copy = tmp_path / "rst"
    shutil.copytree(agreement.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    assert agreement.digest_of_code(copy) == agreement.digest_of_code(agreement.PACKAGE)
    (copy / "method.py").write_text((copy / "method.py").read_text() + "# changed\n")
    cfg = config("devices=2")
    first, second = refusals((*SAME, cfg), ("agreement.PACKAGE", copy, cfg))
    assert first == second
    assert first.startswith("the ranks differ in the code: ")
    assert first.endswith("; install one version of it on all hosts.")


class OtherGate(loop.rst.RST):
    """A method whose gate has another step open."""

    @property
    def gate(self) -> Tensor:
        gate = super().gate.clone()
        gate[0] = ~gate[0]
        return gate


def test_another_gate_is_refused(config):
    cfg = config("devices=2")
    first, _ = refusals((*SAME, cfg), ("loop.rst.RST", OtherGate, cfg))
    assert first.startswith("the ranks differ in the gate: ")


class Drifts(loop.Run):
    """From step 4 on its weights are not those of the other ranks."""

    def _train_step(self, images: Tensor, labels: Tensor) -> None:
        super()._train_step(images, labels)
        if self.step == 4:
            with torch.no_grad():
                next(self.model.parameters()).view(-1)[0] += 1e-6


def test_weights_that_drift_apart_are_found_at_the_checkpoint_and_never_written(config):
    cfg = config("devices=2")
    first, second = refusals((*SAME, cfg), ("loop.Run", Drifts, cfg))
    assert first == second
    assert first.startswith("the ranks differ after step 6 in the weights: ")
    record = open_record(cfg)
    assert not record.done
    assert checkpoint.load(record.checkpoint)["step"] == 3


# Gradients that are not finite on one rank alone


class InfiniteLoss(loop.Run):
    """At step 4, in the first pass or in the second."""

    in_pass = 1

    def _losses(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        losses, logits = super()._losses(x, y)
        self.passes = self.passes + 1 if getattr(self, "at", None) == self.step else 1
        self.at = self.step
        if (self.step, self.passes) == (4, self.in_pass):
            (self.record.folder / "spoilt").touch()
            losses = self.spoilt(losses)
        return losses, logits

    def spoilt(self, losses: Tensor) -> Tensor:
        return losses * torch.inf


class InfiniteGradient(InfiniteLoss):
    """Of a loss that is finite."""

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
    cfg = config(*ONE_PERTURBATION)
    first, second = refusals((*SAME, cfg), ("loop.Run", spoilt, cfg))
    assert first == second
    assert "the loss is not finite" in first
    assert checkpoint.load(open_record(cfg).checkpoint)["step"] == 3


@pytest.mark.parametrize("spoilt", GRADIENTS)
def test_under_a_loss_scaler_all_ranks_skip_the_step_and_keep_equal_weights(config, spoilt):
    """Equal, or the checkpoint would have refused them."""
    small = ("dataset.train_images=24", "recipe.batch_size=8", "recipe.perturbation_batch=4")
    cfg = config("devices=2", "scheme=sam", "autocast=float16", *small)
    records = on_ranks(trained_with, (*SAME, cfg), ("loop.Run", spoilt, cfg))
    assert isinstance(records[0], Record), records
    assert (records[0].folder / "spoilt").exists()
    assert all(value.isfinite().all() for value in checkpoint.load(records[0].checkpoint)["model"].values())


# The parts


class Fixed(World):
    """Some ranks, of which these are the facts."""

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


def test_a_rank_alone_does_not_compute_what_there_is_nothing_to_compare_with():
    compare(ALONE, lambda: pytest.fail("it did"))


class Two(World):
    """A rank, and another that is faster or got a signal."""

    size = 2

    def __init__(self, *others: float) -> None:
        self.others = others

    def max(self, *values: float) -> list[float]:
        return [max(pair) for pair in zip(values, self.others, strict=True)]


def test_ranks_look_up_together_after_the_fewest_steps_that_any_of_them_proposes():
    lookout = Lookout(Two(0, -3), step=10)
    assert [lookout.is_due(step) for step in (10, 11)] == [False, True]
    assert lookout.look(11) == 0
    assert [lookout.is_due(step) for step in (12, 13, 14)] == [False, False, True]


def test_a_signal_to_one_rank_is_seen_by_all_when_they_look_and_not_before():
    lookout = Lookout(Two(15, -3), step=0)
    lookout.requests.append(2)
    assert not lookout.is_due(0)
    assert lookout.look(1) == 15


def test_alone_a_signal_is_seen_after_the_step_in_which_it_comes():
    lookout = Lookout(ALONE, step=0)
    assert not lookout.is_due(1)
    lookout.requests.append(2)
    assert lookout.is_due(1)
    assert lookout.look(1) == 2
