"""What stays on the disk of a run that is done: what its tables and its score need, and no more."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rst.experiments.compose import compose
from rst.experiments.errors import InputError
from rst.experiments.runs.record import Record, open_record
from rst.experiments.spec import RunSpec
from rst.experiments.training import checkpoint, score, train

Config = Callable[..., RunSpec]

FACTS = {".lock", "config.yaml", "metrics.jsonl", "starts.jsonl", "summary.json"}
WITHOUT = "keep_network=false"


class Killed(BaseException):
    """The process ends here."""


def trained(spec: RunSpec) -> Record:
    return train(spec, show_progress=False)


def files_of(record: Record) -> set[str]:
    return {path.name for path in record.folder.iterdir()}


def test_a_run_that_is_done_keeps_its_network_and_not_the_state_of_its_training(config: Config) -> None:
    record = trained(config())
    assert files_of(record) == FACTS | {"checkpoint.pt"}
    assert checkpoint.load(record.checkpoint).keys() == {"id", "config", "model"}


def test_a_run_that_is_to_keep_no_network_keeps_its_facts_alone(config: Config) -> None:
    record = trained(config(WITHOUT))
    assert files_of(record) == FACTS
    assert trained(config(WITHOUT)).summary == record.summary


def test_whether_the_network_stays_changes_neither_the_run_nor_its_id(config: Config, tmp_path: Path) -> None:
    kept, dropped = trained(config()), trained(config(WITHOUT, f"paths.runs={tmp_path / 'others'}"))
    assert kept.id == dropped.id
    assert kept.summary["test_loss"] == dropped.summary["test_loss"]


@pytest.mark.parametrize(("scale", "kept"), [("paper", True), ("cpu", True), ("smoke", False)])
def test_runs_of_a_few_steps_keep_no_network_unless_they_are_told_to(scale: str, kept: bool) -> None:
    assert compose([f"scale={scale}"]).keep_network == kept
    assert compose([f"scale={scale}", "keep_network=true"]).keep_network


@pytest.mark.parametrize("given", ["id", "folder", "checkpoint"])
def test_the_score_of_a_run_without_its_network_is_refused_with_the_key_that_keeps_it(
    config: Config, tmp_path: Path, given: str
) -> None:
    name = getattr(trained(config(WITHOUT)), given)
    command = [f"evaluate='{name}'", f"paths.runs={tmp_path / 'runs'}"]
    with pytest.raises(InputError) as refusal:
        score(compose(command), command)
    assert str(refusal.value) == (
        f"evaluate={name} is a run that has kept no network: train it anew with force=true and keep_network=true."
    )


@pytest.mark.parametrize("keep", [True, False], ids=["with its network", "without"])
@pytest.mark.parametrize("call", [1, 2])
def test_a_run_that_is_killed_when_it_is_done_is_tidied_by_the_next_command(
    config: Config, monkeypatch: pytest.MonkeyPatch, keep: bool, call: int
) -> None:
    """It is killed before the first or the second file that it removes."""
    spec, calls, unlink = config(f"keep_network={keep}"), 0, Path.unlink

    def killed(path: Path, missing_ok: bool = False) -> None:
        nonlocal calls
        calls += path.suffix == ".pt" and open_record(spec).done
        if calls == call:
            raise Killed
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        try:
            trained(spec)
        except Killed:
            pass
        else:
            assert (keep, call) == (True, 2)  # Then one file alone is removed.
    assert open_record(spec).done
    assert files_of(trained(spec)) == FACTS | ({"checkpoint.pt"} if keep else set())


def test_a_full_disk_leaves_the_checkpoints_and_the_run_is_done(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def full(source: str | Path, target: str | Path) -> None:
        if Path(target).name == "checkpoint.pt" and open_record(config()).done:
            raise OSError(28, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        record = trained(config())
    assert record.done
    assert "ranks" in checkpoint.load(record.checkpoint)
