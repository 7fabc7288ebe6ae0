"""Runs whose checkpoint is damaged, late, of another run or of another origin."""

import pickle
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from stopped_runs import a_signal, assert_same_outcome, contents, unfinished_run, whole_checkpoints

from rst.experiments.errors import InputError
from rst.experiments.runs.record import Record, open_record
from rst.experiments.spec import RunSpec
from rst.experiments.training import Interrupted, checkpoint, loop, train

Config = Callable[..., RunSpec]

# --------------------------------------------------------------------------------------------------- damaged or missing


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture(autouse=True)
def _whole() -> Iterator[None]:
    with whole_checkpoints():
        yield


@pytest.fixture
def undisturbed(config: Config, tmp_path: Path) -> Record:
    return train(config("recipe.epochs=4", f"paths.runs={tmp_path / 'undisturbed'}"), show_progress=False)


def test_a_run_whose_checkpoint_is_damaged_goes_on_from_the_one_before_and_ends_the_same(config, undisturbed):
    spec = config("recipe.epochs=4")
    for steps in (4, 4):
        with a_signal(signal.SIGTERM, "step", steps), pytest.raises(Interrupted):
            train(spec, show_progress=False)
    record = open_record(spec)
    record.checkpoint.write_bytes(record.checkpoint.read_bytes()[:-1000])
    with pytest.warns(UserWarning, match="goes on from"):
        train(spec, show_progress=False)
    assert_same_outcome(record, undisturbed)


@pytest.mark.parametrize("torn", [False, True], ids=["", "in the middle of the line"])
def test_a_run_killed_between_a_line_of_metrics_and_its_checkpoint_ends_the_same(config, undisturbed, torn):
    """No line is there twice, none is missing."""
    spec = config("recipe.epochs=4")
    record, save = open_record(spec), checkpoint.save
    with pytest.MonkeyPatch.context() as patch:

        def killed(path: Path, content: dict) -> None:
            if content["counters"]["step"] > 3:
                raise Killed
            save(path, content)

        patch.setattr(checkpoint, "save", killed)
        with pytest.raises(Killed):
            train(spec, show_progress=False)
    metrics = record.folder / "metrics.jsonl"
    assert len(record.metrics) > 1
    assert checkpoint.load(record.checkpoint)["counters"]["step"] == 3
    if torn:
        metrics.write_text(metrics.read_text()[:-20])
    assert_same_outcome(train(spec, show_progress=False), undisturbed)


# --------------------------------------------------------------------------------------------------- the time they take


def test_the_time_of_checkpoints_is_measured_and_goes_on_after_a_stop(config, monkeypatch):
    save = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda *arguments: time.sleep(0.1) or save(*arguments))
    begin = time.monotonic()
    with a_signal(signal.SIGTERM, "step", 4), pytest.raises(Interrupted):  # after the checkpoint of an epoch
        train(config(), show_progress=False)
    summary = train(config(), show_progress=False).summary
    assert 2 * 0.1 <= summary["checkpoint_seconds"] <= time.monotonic() - begin


def test_checkpoints_that_take_long_are_written_for_the_first_and_the_last_epoch_alone(config, monkeypatch):
    """They may take half a hundredth of the training time."""
    steps, save = [], checkpoint.save

    def slow_save(path: Path, content: dict) -> None:
        steps.append(content["counters"]["step"])
        time.sleep(0.1)
        save(path, content)

    monkeypatch.setattr(checkpoint, "save", slow_save)
    train(config("recipe.epochs=5"), show_progress=False)
    assert steps == [3, 15]
    steps.clear()
    monkeypatch.setattr(loop, "CHECKPOINT_SHARE", 1e9)
    train(config("recipe.epochs=5", "seed=1"), show_progress=False)
    assert steps == [3, 6, 9, 12, 15]


# ---------------------------------------------------------------------------------------------------- of another origin


@pytest.fixture
def unfinished(config: Config) -> Record:
    return unfinished_run(config())


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no checkpoint", b"\x80\x02]."])
def test_a_file_that_is_no_checkpoint_is_refused_in_one_sentence(
    config: Config, unfinished: Record, content: bytes
) -> None:
    unfinished.checkpoint.write_bytes(content)
    before = contents(unfinished)
    with pytest.raises(InputError, match=rf"^{unfinished.checkpoint} is not a checkpoint of this project.*\.$"):
        train(config(), show_progress=False)
    assert contents(unfinished) == before


class Code:
    """An object that makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", [torch.save, lambda state, path: path.write_bytes(pickle.dumps(state, protocol=2))])
def test_code_in_a_checkpoint_is_not_run(
    config: Config, unfinished: Record, tmp_path: Path, save: Callable[[Any, Path], Any]
) -> None:
    trace = tmp_path / "trace"
    save({"id": unfinished.id, "config": "", "model": {}, "code": Code(trace)}, unfinished.checkpoint)
    with pytest.raises(InputError, match="is not a checkpoint of this project"):
        train(config(), show_progress=False)
    assert not trace.exists()
    torch.load(unfinished.checkpoint, weights_only=False) if save is torch.save else pickle.loads(
        unfinished.checkpoint.read_bytes()
    )
    assert trace.exists()  # Read without care, the same file does run its code.


def test_a_checkpoint_of_another_run_is_refused(config: Config, unfinished: Record) -> None:
    done = train(config("seed=4"), show_progress=False)
    unfinished.checkpoint.write_bytes(done.checkpoint.read_bytes())
    before = contents(unfinished)
    with pytest.raises(InputError, match=f"{unfinished.checkpoint} belongs to another run, {done.id}"):
        train(config(), show_progress=False)
    assert contents(unfinished) == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda content: content.pop("ranks"),
            "has a network alone, not the state of its training: delete it to start anew",
        ),
        (lambda content: content.pop("counters"), "does not fit the run, or is damaged: name another"),
        (
            lambda content: content["counters"].update(unknown=1),
            "does not fit the run, or is damaged: name another",
        ),
        (lambda content: content.pop("lr_scheduler"), "does not fit the run, or is damaged: name another"),
        (lambda content: content["model"].popitem(), "does not fit the run, or is damaged: name another"),
    ],
)
def test_a_checkpoint_that_is_whole_but_does_not_fit_the_run_is_refused(config, unfinished, change, words):
    path = unfinished.checkpoint
    content = checkpoint.load(path)
    change(content)
    torch.save(content, path)
    with pytest.raises(InputError, match=rf"^{path} {words}.*\.$"):
        train(config(), show_progress=False)
