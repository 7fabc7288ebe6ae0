"""On a GPU the passes of a step are replayed from a graph, and give what they give one kernel at a time."""

from collections.abc import Callable, Iterator

import pytest
import torch
from stopped_runs import whole_checkpoints

from rst.experiments.errors import InputError
from rst.experiments.runs.record import Record, open_record
from rst.experiments.spec import RunSpec
from rst.experiments.training import checkpoint, train
from rst.experiments.training.loop import Run
from rst.experiments.training.ranks import ALONE
from rst.experiments.training.step import TrainingStep

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

Config = Callable[..., RunSpec]

ON_GPU = ("device=cuda", "recipe.epochs=3", "deterministic=true")


@pytest.fixture(autouse=True)
def _whole() -> Iterator[None]:
    with whole_checkpoints():
        yield


def warm_run(spec: RunSpec) -> Run:
    run = Run(spec, open_record(spec), ALONE, show_progress=False)
    run.train_step.warm_up(*next(run.loader.epoch(0)))
    return run


def trained(spec: RunSpec) -> tuple[Record, dict[str, torch.Tensor]]:
    record = train(spec.changed(force=True), show_progress=False)
    return record, checkpoint.of_run(record, 1)["model"]


@pytest.mark.parametrize("precision", ["autocast=null", "autocast=bfloat16", "autocast=float16"])
@pytest.mark.parametrize(
    "method",
    [
        ("scheme=sgd",),
        ("scheme=sam",),
        ("scheme=grst",),
        ("scheme=grst", "scheme.normalise_clean=true"),
        ("scheme=rst", "variant=asam"),
        ("scheme=grst", "variant=gsam"),
    ],
    ids=" ".join,
)
def test_a_run_ends_with_the_weights_and_the_counts_of_one_without_graphs(
    config: Config, method: tuple[str, ...], precision: str
) -> None:
    replayed, weights = trained(config(*ON_GPU, *method, precision))
    plain, expected = trained(config(*ON_GPU, *method, precision, "cuda_graphs=false"))
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-5)
    for key in ("sharp_steps", "forward_passes", "backward_passes", "extra_propagations_realised", "total_steps"):
        assert replayed.summary[key] == pytest.approx(plain.summary[key])
    for key in ("train_loss", "train_error", "loss_gap"):
        ours, theirs = ([line[key] for line in record.metrics] for record in (replayed, plain))
        assert ours == pytest.approx(theirs, rel=1e-3)


@pytest.mark.parametrize(
    ("more", "kinds"),
    [
        (("scheme=sgd",), {False}),
        (("scheme=sam",), {True}),
        (("scheme=grst",), {False, True}),
        (("scheme=grst", "compile=true"), {False, True}),
        (("scheme=sgd", "cuda_graphs=false"), set()),
        (("scheme=grst", "variant=looksam"), set()),
        (("scheme=grst", "variant=esam"), set()),
        (("scheme=rst", "schedule=ae_sam"), set()),
        (("scheme=sam", "model=vit_ti", "model.width=24", "model.depth=1"), set()),  # It has dropout.
    ],
)
def test_kinds_of_step_that_are_always_alike_are_captured(
    config: Config, more: tuple[str, ...], kinds: set[bool]
) -> None:
    assert set(warm_run(config("device=cuda", *more)).train_step.graphs) == kinds


@pytest.mark.parametrize("precision", ["autocast=null", "autocast=bfloat16"])
def test_a_replayed_step_waits_for_nothing(config: Config, precision: str) -> None:
    run = warm_run(config("device=cuda", "scheme=grst", precision))
    batch = next(run.loader.epoch(0))
    run.train_step(*batch)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            run.train_step(*batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert run.state.counters.step == 4


def test_a_network_that_reads_from_the_gpu_is_refused_with_what_to_write(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = TrainingStep.losses

    def read(self: TrainingStep, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        result = losses(self, x, y)
        result[0].sum().item()
        return result

    monkeypatch.setattr(TrainingStep, "losses", read)
    with pytest.raises(InputError, match="write cuda_graphs=false"):
        warm_run(config("device=cuda", "scheme=sgd"))
