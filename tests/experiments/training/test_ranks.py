"""One run on several ranks, which gloo connects, is the run of one device, and stops and goes on as one."""

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import on_ranks
from stopped_runs import a_signal, assert_same_outcome, in_sessions
from torch import Tensor, nn

from rst.experiments.errors import InputError
from rst.experiments.runs.record import Record, open_record
from rst.experiments.spec import RunSpec
from rst.experiments.training import Interrupted, checkpoint, loop, train
from rst.experiments.training.evaluation import evaluate
from rst.experiments.training.ranks import joined

quiet_train = partial(train, show_progress=False)


def train_in_double(spec: RunSpec) -> Record:
    """The run with weights in double precision, so that a difference is not hidden by rounding."""

    def build(*arguments: Any) -> nn.Module:
        model = build_model(*arguments).double()
        model.register_forward_pre_hook(lambda module, inputs: (inputs[0].double(),))
        return model

    build_model = loop.build_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "build_model", build)
        return quiet_train(spec)


def trained(config: Callable[..., RunSpec], folder: Path, devices: int, *more: str) -> Record:
    """The record of a run on so many ranks."""
    spec = config(*more, "keep_network=true", f"devices={devices}", f"paths.runs={folder / str(devices)}")
    record = on_ranks(train_in_double, *[(spec,)] * devices)[0] if devices > 1 else train_in_double(spec)
    assert isinstance(record, Record), record
    return record


# ----------------------------------------------------------------------------------------------- ranks as micro-batches


IMAGES = ("dataset=cifar10", "dataset.source=digits", "scale=smoke", "dataset.train_images=48", "recipe.batch_size=16")
EQUAL = {
    "SGD": ("scheme=sgd",),
    "G-RST": ("scheme=grst", "seed=2"),
    "ASAM": ("scheme=sam", "variant=asam"),
    "GSAM": ("scheme=sam", "variant=gsam"),
    "LookSAM": ("scheme=sam", "variant=looksam", "variant.k=2"),
    "ESAM": ("scheme=sam", "variant=esam"),
    "dropout, mixup, label noise, validation images": (
        *IMAGES,
        *("model=vgg16_bn", "augmentation=mixup", "dataset.label_noise=0.2", "dataset.validation=7"),
        *("dataset.train_images=39", "scheme=sam"),
    ),
    "cutout, an odd number of test images": ("augmentation=cutout", "augmentation.cutout=3", "dataset.test_images=41"),
}


@pytest.mark.parametrize("name", EQUAL)
def test_two_ranks_of_two_micro_batches_are_the_run_of_four_on_one_device(config, tmp_path, name):
    """Weights, buffers and losses are equal to rounding, counts exactly."""
    size = 4 if "vgg" in str(EQUAL[name]) else 8
    more = (*EQUAL[name], f"recipe.perturbation_batch={size}", "optimizer.lr=0.02")
    assert_equal_runs(*(trained(config, tmp_path, devices, *more) for devices in (1, 2)))


def test_four_ranks_of_one_micro_batch_are_the_run_of_four_on_one_device(config, tmp_path):
    more = ("recipe.perturbation_batch=8", "optimizer.lr=0.02", "scheme=sam")
    assert_equal_runs(*(trained(config, tmp_path, devices, *more) for devices in (1, 4)))


def assert_equal_runs(one: Record, several: Record) -> None:
    assert one.id == several.id
    models = [checkpoint.load(record.checkpoint)["model"] for record in (several, one)]
    torch.testing.assert_close(*models, rtol=1e-5, atol=1e-7)
    for line, expected in zip(several.metrics, one.metrics, strict=True):
        del line["train_seconds"], expected["train_seconds"]
        assert line == {k: v if v is None else pytest.approx(v, rel=1e-6) for k, v in expected.items()}


def test_it_matters_that_the_ranks_perturb_by_their_own_gradients(config, tmp_path):
    """Another number of perturbations a step is another run, so that the tests above can fail."""
    four, two = (
        trained(config, tmp_path / str(size), 1, "scheme=sam", f"recipe.perturbation_batch={size}") for size in (8, 16)
    )
    weights = [checkpoint.load(record.checkpoint)["model"]["head.weight"] for record in (four, two)]
    assert not torch.allclose(*weights, rtol=1e-3)


# ----------------------------------------------------------------------------------------------------------- evaluation


class Network(nn.Module):
    """BatchNorm before a linear layer, with statistics that follow from a seed."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.head = nn.BatchNorm1d(8), nn.Linear(8, 100)
        torch.manual_seed(seed)
        self.norm(torch.randn(50, 8) * 3 + 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x))


def examples(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, 8, generator=generator), torch.randint(100, (count,), generator=generator)


COUNTS = (1, 2, 3, 7, 20)


def scores_on_a_rank() -> tuple[list[dict[str, float]], bool]:
    """The scores of some images of which this rank has its share, and whether its buffers are as before."""
    with joined(2) as world:
        model = Network(world.rank)
        before = [buffer.clone() for buffer in model.buffers()]
        shares = [[part[world.rank :: 2] for part in examples(count)] for count in COUNTS]
        batches = [list(zip(x.split(3), y.split(3), strict=True)) if len(x) else [] for x, y in shares]
        scores = [evaluate(model, of_one, 100, world) for of_one in batches]
        return scores, all(map(torch.equal, model.buffers(), before))


def test_scores_are_exact_over_ranks_whatever_the_remainder_with_the_mean_of_their_buffers():
    (scores, kept), (others, others_kept) = on_ranks(scores_on_a_rank, (), ())
    assert kept
    assert others_kept
    assert scores == others
    mean, other = Network(0), Network(1)
    for buffer, theirs in zip(mean.buffers(), other.buffers(), strict=True):
        buffer.copy_((buffer + theirs) / 2)
    mean.eval()
    for count, of_count in zip(COUNTS, scores, strict=True):
        x, y = examples(count)
        with torch.no_grad():
            logits = mean(x)
        places = (logits > logits.gather(1, y[:, None])).sum(1)
        assert of_count["error"] == pytest.approx(100 * (places >= 1).double().mean().item(), abs=1e-12)
        assert of_count["top5_error"] == pytest.approx(100 * (places >= 5).double().mean().item(), abs=1e-12)
        assert of_count["loss"] == pytest.approx(nn.functional.cross_entropy(logits, y).item(), rel=1e-5)


# ------------------------------------------------------------------------------------------------ stopping and going on


def stopped_on_rank_1(rank: int, spec: RunSpec, steps: int, number: int) -> Record:
    """The run, which a signal to rank 1 stops after so many steps of each session."""
    return in_sessions(spec, steps if rank == 1 else 10**9, number)


def test_ranks_that_stop_after_a_signal_to_one_of_them_end_as_if_they_never_had(config, tmp_path):
    """With LookSAM, which keeps a state for each rank and each micro-batch."""
    more = ("devices=2", "scheme=sam", "variant=looksam", "recipe.perturbation_batch=8")
    spec, undisturbed = (config(*more, f"paths.runs={tmp_path / name}") for name in ("a", "b"))
    records = on_ranks(stopped_on_rank_1, (0, spec, 1, signal.SIGUSR1), (1, spec, 1, signal.SIGUSR1))
    assert isinstance(records[0], Record), records
    expected = on_ranks(quiet_train, (undisturbed,), (undisturbed,))[0]
    assert_same_outcome(records[0], expected)


def test_another_number_of_devices_is_refused_and_named(config):
    spec = config("devices=2", "recipe.epochs=3")
    stops = on_ranks(stopped_once, (0, spec), (1, spec))
    assert [type(stop) for stop in stops] == [Interrupted, Interrupted]
    path = open_record(spec).checkpoint
    before = path.read_bytes()
    with pytest.raises(InputError, match=rf"^{path} is of devices=2, .* not of devices=1: write devices=2, or delete"):
        quiet_train(config("recipe.epochs=3"))
    assert path.read_bytes() == before


def stopped_once(rank: int, spec: RunSpec) -> None:
    with a_signal(signal.SIGTERM, "step", 2 if rank == 0 else 10**9):
        quiet_train(spec)


def test_a_number_of_devices_that_is_not_that_of_the_ranks_is_refused(config):
    spec = config("devices=4", "recipe.perturbation_batch=8")
    errors = on_ranks(quiet_train, (spec,), (spec,))
    assert {str(error) for error in errors} == {
        "devices=4, but torch's launcher has started 2 ranks: leave devices out."
    }
