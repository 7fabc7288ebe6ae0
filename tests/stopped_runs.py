"""Runs that are stopped by a real signal and go on, and whether they end as one that was never stopped."""

import operator
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_flatten

from rst.experiments.runs.record import Record
from rst.experiments.spec import RunSpec
from rst.experiments.training import Interrupted, checkpoint, loop, train

MEASURED = ("train_seconds", "checkpoint_seconds", "images_per_second", "peak_memory_bytes")
"""What may differ: times and memory."""


def outcome(record: Record) -> list[Any]:
    """All that a run leaves behind, but for times and memory: first its checkpoint."""
    content = checkpoint.load(record.checkpoint)
    del content["config"]  # It has the paths, which differ.
    lines = [content, content.pop("counters", {}), record.summary, *record.metrics]
    return [{key: value for key, value in line.items() if key not in MEASURED} for line in lines]


def assert_same_outcome(record: Record, expected: Record) -> None:
    """Weights, buffers, every line of the metrics and the summary are equal to the bit.

    So are optimizer, random numbers and counters, where `whole_checkpoints` has kept them for both runs.
    """
    assert [line["epoch"] for line in record.metrics] == list(range(record.summary["epochs"]))
    found, wanted = outcome(record), outcome(expected)
    if found[0].keys() != wanted[0].keys():
        for lines in (found, wanted):
            lines[:2] = [{key: lines[0][key] for key in ("id", "model")}, {}]
    leaves, structure = tree_flatten(found)
    expected_leaves, expected_structure = tree_flatten(wanted)
    assert structure == expected_structure
    for leaf, expected_leaf in zip(leaves, expected_leaves, strict=True):
        same = torch.equal if isinstance(leaf, torch.Tensor) else operator.eq
        assert same(leaf, expected_leaf)


@contextmanager
def whole_checkpoints() -> Iterator[None]:
    """Inside, a run that ends keeps its whole last checkpoint, not the network alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "cut", lambda path, keep_network: None)
        yield


def unfinished_run(spec: RunSpec) -> Record:
    """The record of a run with one checkpoint, whose summary is still to be written."""
    with whole_checkpoints():
        record = train(spec, show_progress=False)
    (record.folder / "summary.json").unlink()
    (record.folder / "checkpoint.previous.pt").unlink()
    return record


def contents(record: Record) -> dict[Path, bytes]:
    """The files of a record."""
    return {path: path.read_bytes() for path in record.folder.iterdir()}


@contextmanager
def a_signal(number: int, after: str, times: int) -> Iterator[None]:
    """Send a real signal to this process when a function of the loop has been called so many times.

    ``after`` names the function; "step" stands for the end of a training step.
    """
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


def in_sessions(spec: RunSpec, steps: int, number: int = signal.SIGINT, after: str = "step") -> Record:
    """The record of a run that is stopped again and again, each time after so many steps."""
    for _ in range(100):
        try:
            with a_signal(number, after, steps):
                return train(spec, show_progress=False)
        except Interrupted:
            pass
    raise AssertionError("the run makes no headway")
