"""A run that is stopped, at any step and in any way, ends as one that never was."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from stopped_runs import a_signal, assert_same_outcome, in_sessions, whole_checkpoints

from rst.experiments.runs.record import Record, open_record
from rst.experiments.spec import RunSpec
from rst.experiments.training import Interrupted, checkpoint, loop, train
from rst.experiments.training.signals import StopPoll

Config = Callable[..., RunSpec]
Undisturbed = Callable[..., Record]


@pytest.fixture(autouse=True)
def _whole() -> Iterator[None]:
    with whole_checkpoints():
        yield


@pytest.fixture
def undisturbed(config: Config, tmp_path: Path) -> Undisturbed:
    """The same run as that of a config, never stopped, in a folder of its own."""
    return lambda *more: train(config(*more, f"paths.runs={tmp_path / 'undisturbed'}"), show_progress=False)


@pytest.mark.parametrize("scheme", ["sgd", "sam", "gnr", "rst", "grst"])
def test_a_run_stopped_after_every_step_ends_as_one_that_never_was(
    config: Config, undisturbed: Undisturbed, scheme: str
) -> None:
    assert_same_outcome(in_sessions(config(f"scheme={scheme}"), 1), undisturbed(f"scheme={scheme}"))


IMAGES = ("dataset=cifar10", "dataset.source=digits", "scale=smoke", "dataset.train_images=64", "recipe.batch_size=16")
CASES = {
    "dropout": (*IMAGES, "model=vgg16_bn", "recipe.perturbation_batch=8"),
    "ViT, AdamW, mixup, warm-up": (*IMAGES, "model=vit_ti", "recipe.perturbation_batch=null", "recipe.warmup_epochs=1"),
    "plain steps in one pass": (
        *IMAGES,
        *("model=vit_ti", "model.dropout=0.0", "recipe.perturbation_batch=8", "scheme=rst", "seed=2"),
    ),
    "cutout, label noise, validation images": (
        *("augmentation=cutout", "augmentation.cutout=3", "augmentation.cutout_per_image=true"),
        *("dataset.label_noise=0.3", "dataset.validation=4"),
    ),
    "a loss scaler": (
        "autocast=float16",
        "dataset.train_images=24",
        "recipe.batch_size=8",
        "recipe.perturbation_batch=4",
    ),
    "a schedule that changes": ("schedule=linear", "seed=2"),
    "epochs without evaluation": ("recipe.epochs=3", "evaluate_every=2"),
    "epochs of one step": ("recipe.epochs=4", "dataset.train_images=40", "seed=4"),
}


@pytest.mark.parametrize("more", CASES.values(), ids=CASES)
def test_a_run_stopped_after_every_second_step_ends_as_one_that_never_was_with(
    config: Config, undisturbed: Undisturbed, more: tuple[str, ...]
) -> None:
    assert_same_outcome(in_sessions(config(*more), 2), undisturbed(*more))


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_signal_during_an_evaluation_loses_nothing(config: Config, undisturbed: Undisturbed, epoch: int) -> None:
    assert_same_outcome(in_sessions(config(), epoch, after="evaluate"), undisturbed())


def test_the_run_goes_on_in_the_same_process_with_the_exception_still_at_hand(
    config: Config, undisturbed: Undisturbed
) -> None:
    """As in a notebook, which keeps the last traceback."""
    with a_signal(signal.SIGTERM, "step", 2), pytest.raises(Interrupted) as stopped:
        train(config(), show_progress=False)
    assert stopped.value.signal_number == signal.SIGTERM
    assert_same_outcome(train(config(), show_progress=False), undisturbed())


def test_a_second_signal_stops_at_once_and_the_run_still_resumes(
    config: Config, undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rst.experiments.training.signals.ONE_REQUEST", 0.0)
    with (
        a_signal(signal.SIGINT, "step", 4),
        a_signal(signal.SIGINT, "step", 4),
        pytest.raises(KeyboardInterrupt),
    ):
        train(config(), show_progress=False)
    assert_same_outcome(train(config(), show_progress=False), undisturbed())


def test_signals_that_come_together_are_one_request(config: Config, undisturbed: Undisturbed) -> None:
    """As from Ctrl-C, which the terminal sends to all processes and a launcher passes on."""
    with a_signal(signal.SIGINT, "step", 4), a_signal(signal.SIGTERM, "step", 4), pytest.raises(Interrupted) as stopped:
        train(config(), show_progress=False)
    assert stopped.value.signal_number == signal.SIGINT  # It is sent first.
    assert_same_outcome(train(config(), show_progress=False), undisturbed())


def test_a_line_of_metrics_that_was_cut_off_is_written_again(config: Config, undisturbed: Undisturbed) -> None:
    with a_signal(signal.SIGINT, "step", 4), pytest.raises(Interrupted):
        train(config(), show_progress=False)
    metrics = open_record(config()).folder / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"epoch": 1, "tr')
    assert_same_outcome(train(config(), show_progress=False), undisturbed())


def test_a_line_is_added_to_the_starts_each_time_the_run_goes_on(config: Config) -> None:
    record = in_sessions(config(), 2)
    assert len(record.starts) == 3  # of 6 steps
    assert all(start == record.starts[0] for start in record.starts)


# ------------------------------------------------------------------------------------------- checkpoints by the clock


class Killed(BaseException):
    """The process ends here."""


@contextmanager
def looking_after_every_step() -> Iterator[list[int]]:
    """The steps whose checkpoints a run writes, where it looks up from its work after every step."""
    steps, save = [], checkpoint.save

    def noted(path: Path, content: dict) -> None:
        save(path, content)
        steps.append(content["counters"]["step"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopPoll, "SECONDS", 0.0)
        patch.setattr(loop, "CHECKPOINT_SHARE", 1e9)
        patch.setattr(checkpoint, "save", noted)
        yield steps


@pytest.mark.parametrize("step", [1, 2, 5])
@pytest.mark.parametrize("more", [(), CASES["dropout"], CASES["a loss scaler"]], ids=["", "dropout", "a loss scaler"])
def test_a_run_that_is_killed_after_a_checkpoint_within_an_epoch_ends_the_same(
    config: Config, undisturbed: Undisturbed, step: int, more: tuple[str, ...]
) -> None:
    spec = config(*more)
    done = loop.Progress.step

    def killed(self: loop.Progress, *arguments: object) -> None:
        done(self, *arguments)
        if steps and steps[-1] == step:
            raise Killed

    with looking_after_every_step() as steps, pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Progress, "step", killed)
        with pytest.raises(Killed):
            train(spec, show_progress=False)
    assert steps[-1] == step
    assert checkpoint.load(open_record(spec).checkpoint)["counters"]["step"] == step
    assert_same_outcome(train(spec, show_progress=False), undisturbed(*more))


def test_a_run_with_a_checkpoint_after_every_step_is_the_same_run(config: Config, undisturbed: Undisturbed) -> None:
    with looking_after_every_step() as steps:
        record = train(config(), show_progress=False)
    assert steps == [1, 2, 3, 4, 5, 6]
    assert_same_outcome(record, undisturbed())


def test_checkpoints_within_an_epoch_keep_to_their_share_and_are_not_training_time(config: Config) -> None:
    with looking_after_every_step() as steps, pytest.MonkeyPatch.context() as patch:
        save = checkpoint.save
        patch.setattr(checkpoint, "save", lambda *arguments: time.sleep(1) or save(*arguments))
        patch.setattr(loop, "CHECKPOINT_SHARE", 1 / 200)
        summary = train(config("recipe.epochs=1"), show_progress=False).summary
    assert steps == [1, 3]  # The first one takes as long as 200 seconds of training would allow; then comes the last.
    assert summary["checkpoint_seconds"] >= 2
    assert summary["train_seconds"] < 1


# ------------------------------------------------------------------------------------------------------ other processes

LONG = ("recipe.epochs=15",)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGKILL])
def test_a_process_that_gets_a_signal_at_any_moment_leaves_a_run_that_resumes(
    overrides: list[str],
    config: Config,
    command: Callable[..., tuple[BaseProcess, Path]],
    undisturbed: Undisturbed,
    number: int,
) -> None:
    process, output = command(*overrides, *LONG)
    record = open_record(config(*LONG))
    while process.is_alive() and len(record.metrics) < 2:
        time.sleep(0.02)
    os.kill(process.pid, number)
    process.join(timeout=60)

    assert not record.done, "the run ended before the signal reached it"
    if number == signal.SIGKILL:
        assert process.exitcode == -number
    else:
        assert process.exitcode == 128 + number
        (sentence,) = (line for line in output.read_text().splitlines() if line.startswith("train.py: "))
        assert sentence.endswith(f"of {15 * 3}; the same command goes on from there. Record: {record.folder}")
        assert "Traceback" not in output.read_text()
    assert_same_outcome(train(config(*LONG), show_progress=False), undisturbed(*LONG))


def test_a_finished_run_prints_its_result_and_trains_nothing(
    overrides: list[str], config: Config, command: Callable[..., tuple[BaseProcess, Path]]
) -> None:
    record = train(config(), show_progress=False)
    (record.folder / "checkpoint.previous.pt").unlink(missing_ok=True)  # the tests here keep it, a run that is done not
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in record.folder.iterdir()}
    process, output = command(*overrides)
    process.join(timeout=60)
    assert process.exitcode == 0
    known = "was done before, and force=true trains it anew"
    assert output.read_text().startswith(f"{record.id} {known}: test error {record.summary['test_error']:.2f} %")
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in record.folder.iterdir()} == before


def test_a_finished_run_needs_no_device_that_it_was_trained_on(config: Config) -> None:
    """As where records of a GPU are read on a laptop."""
    record = train(config(), show_progress=False)
    assert train(config("device=cuda:99"), show_progress=False).summary == record.summary
