"""A run that is stopped, at any step and in any way, ends as one that never was."""

import operator
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch.utils._pytree import tree_flatten

from rst.experiments.record import Record, open_record
from rst.training import Interrupted, checkpoint, loop, progress, train

MEASURED = ("train_seconds", "checkpoint_seconds", "seconds", "images_per_second", "peak_memory_bytes")
"""What may differ: times and memory."""


def outcome(record: Record) -> list[Any]:
    """All that a run leaves behind, but for times and memory."""
    state = checkpoint.load(record.checkpoint)
    del state["config"]  # which holds the paths
    lines = [state, record.summary, *record.metrics]
    return [{key: value for key, value in line.items() if key not in MEASURED} for line in lines]


def assert_same_outcome(record: Record, expected: Record) -> None:
    """Weights, buffers, optimizer, random numbers, every line of the metrics and the summary, to the bit."""
    assert [line["epoch"] for line in record.metrics] == list(range(record.summary["epochs"]))
    leaves, structure = tree_flatten(outcome(record))
    expected_leaves, expected_structure = tree_flatten(outcome(expected))
    assert structure == expected_structure
    for leaf, expected_leaf in zip(leaves, expected_leaves, strict=True):
        same = torch.equal if isinstance(leaf, torch.Tensor) else operator.eq
        assert same(leaf, expected_leaf)


@contextmanager
def a_signal(number: int, after: str, times: int) -> Iterator[None]:
    """A real signal, sent to this process when the function of the loop has been called so many times."""
    place, name = (loop.Progress, "step") if after == "step" else (loop, after)
    original, calls = getattr(place, name), 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        result = original(*args, **kwargs)
        if calls == times:
            signal.raise_signal(number)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, name, counted)
        yield


def in_sessions(cfg: DictConfig, steps: int, number: int = signal.SIGINT, after: str = "step") -> Record:
    """The run of a config, stopped again and again after so many steps of a session."""
    for _ in range(100):
        try:
            with a_signal(number, after, steps):
                return train(cfg, show_progress=False)
        except Interrupted:
            pass
    raise AssertionError("the run makes no headway")


@pytest.fixture
def undisturbed(config: Callable[..., DictConfig], tmp_path: Path) -> Callable[..., Record]:
    """The same run as that of a config, never stopped, in a folder of its own."""
    return lambda *more: train(config(*more, f"paths.runs={tmp_path / 'undisturbed'}"), show_progress=False)


@pytest.mark.parametrize("scheme", ["sgd", "sam", "gnr", "rst", "grst"])
def test_a_run_stopped_after_every_step_ends_as_one_that_never_was(config, undisturbed, scheme):
    assert_same_outcome(in_sessions(config(f"scheme={scheme}"), 1), undisturbed(f"scheme={scheme}"))


IMAGES = ("dataset=cifar10", "dataset.source=digits", "scale=smoke", "dataset.train_images=64", "recipe.batch_size=16")
CASES = {
    "dropout": (*IMAGES, "model=vgg16_bn", "recipe.perturbation_batch=8"),
    "ViT, AdamW, mixup, warm-up": (*IMAGES, "model=vit_ti", "recipe.perturbation_batch=null", "recipe.warmup_epochs=1"),
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
def test_it_holds_with(config, undisturbed, more):
    assert_same_outcome(in_sessions(config(*more), 2), undisturbed(*more))


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_signal_during_an_evaluation_loses_nothing(config, undisturbed, epoch):
    assert_same_outcome(in_sessions(config(), epoch, after="evaluate"), undisturbed())


def test_the_run_goes_on_in_the_same_process_with_the_exception_still_at_hand(config, undisturbed):
    """As in a notebook, which keeps the last traceback."""
    with a_signal(signal.SIGTERM, "step", 2), pytest.raises(Interrupted) as stopped:
        train(config(), show_progress=False)
    assert stopped.value.signal_number == signal.SIGTERM
    assert_same_outcome(train(config(), show_progress=False), undisturbed())


def test_the_handlers_of_the_process_are_put_back(config):
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    in_sessions(config(), 4)
    assert [signal.getsignal(number) for number in numbers] == before


def test_signals_that_come_together_are_one_request(config, undisturbed):
    """As from Ctrl-C, which the terminal sends to all processes and a launcher passes on."""
    with a_signal(signal.SIGINT, "step", 4), a_signal(signal.SIGTERM, "step", 4), pytest.raises(Interrupted) as stopped:
        train(config(), show_progress=False)
    assert stopped.value.signal_number == signal.SIGINT  # which comes first
    assert_same_outcome(train(config(), show_progress=False), undisturbed())


def test_a_second_signal_stops_at_once_and_the_run_still_resumes(config, undisturbed, monkeypatch):
    monkeypatch.setattr(progress, "SAME_REQUEST", 0.0)
    with (
        a_signal(signal.SIGINT, "step", 4),
        a_signal(signal.SIGINT, "step", 4),
        pytest.raises(KeyboardInterrupt),
    ):
        train(config(), show_progress=False)
    assert_same_outcome(train(config(), show_progress=False), undisturbed())


def test_a_line_of_metrics_that_was_cut_off_is_written_again(config, undisturbed):
    with a_signal(signal.SIGINT, "step", 4), pytest.raises(Interrupted):
        train(config(), show_progress=False)
    metrics = open_record(config()).folder / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"epoch": 1, "tr')
    assert_same_outcome(train(config(), show_progress=False), undisturbed())


# Processes

LONG = ("recipe.epochs=15",)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGKILL])
def test_a_process_that_gets_a_signal_at_any_moment_leaves_a_run_that_resumes(
    overrides, config, command, undisturbed, number
):
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


def test_a_finished_run_prints_its_result_and_trains_nothing(overrides, config, command):
    record = train(config(), show_progress=False)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in record.folder.iterdir()}
    process, output = command(*overrides)
    process.join(timeout=60)
    assert process.exitcode == 0
    assert output.read_text().startswith(f"{record.id}: test error {record.summary['test_error']:.2f} %")
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in record.folder.iterdir()} == before
