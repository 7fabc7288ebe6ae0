"""The run as a whole: what it needs, and what a person sees of it."""

import importlib
import json
import signal
import subprocess
import sys
from functools import partial

import pytest
from conftest import ROOT, on_ranks
from stopped_runs import a_signal

from rst.experiments.errors import InputError
from rst.experiments.runs.record import Diverged, Record, open_record
from rst.experiments.training import Interrupted, checkpoint, loop, train

spawn = importlib.import_module("rst.experiments.training.spawn")
quiet_train = partial(train, show_progress=False)

TRAIN = """
import sys
from rst.experiments.compose import compose
from rst.experiments.training import train

train(compose(sys.argv[1:]), show_progress=False)
print(*sys.modules)
"""


def test_a_run_loads_none_of_the_libraries_that_only_reports_and_other_data_need(overrides):
    """They would take seconds of every start."""
    command = [sys.executable, "-W", "ignore", "-c", TRAIN, *overrides, "recipe.epochs=1"]
    output = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    loaded = set(output.split())
    assert "rst.experiments.training.loop" in loaded
    assert not loaded & {"pandas", "matplotlib", "pyarrow", "scipy.stats", "wandb", "submitit", "tabulate", "jinja2"}


def test_a_run_that_is_done_is_returned_as_it_is(config, monkeypatch):
    record = train(config(), show_progress=False)
    monkeypatch.setattr(loop, "Run", lambda *arguments: pytest.fail("the run was started again"))
    assert train(config(), show_progress=False).summary == record.summary
    assert len(record.starts) == 1


def test_a_run_that_another_process_has_done_meanwhile_is_not_trained_again(config, monkeypatch):
    """Between the first look at the record and the lock there is time for the other one to end."""
    done = train(config(), show_progress=False)
    before = {path: path.read_bytes() for path in done.folder.iterdir()}
    looks = iter([False, False])  # The record is done from the third look on.
    monkeypatch.setattr(type(done), "done", property(lambda self: next(looks, True)))
    assert train(config(), show_progress=False).id == done.id
    assert {path: path.read_bytes() for path in done.folder.iterdir()} == before


@pytest.mark.parametrize("show_progress", [True, False])
def test_the_bar_is_shown_only_where_it_is_asked_for(config, capfd, show_progress):
    record = train(config("seed=2"), show_progress=show_progress)
    output = capfd.readouterr()
    assert (record.id in output.err) == show_progress
    assert output.out == ""


def test_the_metrics_of_an_epoch_have_p_of_its_last_step(config):
    spec = config("scheme=rst", "schedule=linear", "schedule.m=0.8")
    record = train(spec, show_progress=False)
    assert [line["p"] for line in record.metrics] == [spec.p(2, 6), spec.p(5, 6)]


def test_validation_images_are_scored_beside_the_test_images_and_not_trained_on(config):
    record = train(config("dataset.validation=20"), show_progress=False)
    assert record.summary.keys() >= {"validation_error", "validation_loss", "test_error", "test_loss"}
    assert record.summary["total_steps"] == 2 * (80 // 32)


def test_batches_of_an_odd_size_leave_the_last_partial_one_out(config):
    record = train(config("dataset.train_images=95"), show_progress=False)
    assert record.summary["total_steps"] == 2 * (95 // 32)


def test_a_finished_run_has_a_checkpoint_of_its_last_step_and_nothing_half_written(config):
    record = train(config(), show_progress=False)
    names = {path.name for path in open_record(config()).folder.iterdir()}
    assert names == {
        *("config.yaml", "starts.jsonl", "metrics.jsonl", "summary.json", ".lock"),
        "checkpoint.pt",
    }
    assert record.done
    assert checkpoint.load(record.checkpoint).keys() == {"id", "config", "model"}


# ------------------------------------------------------------------------------------------------- a run that diverges

DIVERGES = ("scheme=sgd", "optimizer.lr=1e30")


def test_a_run_that_diverges_keeps_that_as_its_outcome_and_is_not_trained_again(config, monkeypatch):
    with pytest.raises(
        Diverged, match=r"the loss is not finite by step .*: the run has diverged; try a smaller"
    ) as first:
        train(config(*DIVERGES), show_progress=False)
    record = open_record(config(*DIVERGES))
    assert (record.status, record.diverged, record.done) == ("diverged", True, False)
    assert record.divergence == str(first.value)
    assert json.loads((record.folder / "diverged.json").read_text())["step"] <= 6
    monkeypatch.setattr(loop, "Run", lambda *arguments: pytest.fail("the run was started again"))
    with pytest.raises(Diverged) as second:
        train(config(*DIVERGES), show_progress=False)
    assert str(second.value) == str(first.value)


def test_a_damaged_divergence_is_named_in_one_sentence(config):
    record = open_record(config())
    with record.training(config()):
        record.diverge(3, "it diverged")
    (record.folder / "diverged.json").write_text("{")
    with pytest.raises(InputError, match=r"diverged\.json is damaged"):
        train(config(), show_progress=False)


def test_a_run_that_diverged_is_trained_anew_where_that_is_asked_for(config):
    spec = config("recipe.epochs=1")
    record = open_record(spec)
    with record.training(spec):
        record.diverge(3, "it diverged")
    assert train(spec.changed(force=True), show_progress=False).status == "done"
    assert Record(record.folder.with_name(f"{record.id}.old-1")).diverged


# ------------------------------------------------------------------------------------------------------- training anew


def test_a_run_that_is_done_is_trained_anew_where_that_is_asked_for_and_its_old_records_are_kept(config):
    spec = config("recipe.epochs=1")
    first = train(spec, show_progress=False).folder
    kept = [(first / "summary.json").read_bytes()]
    for number in (1, 2):
        assert train(spec.changed(force=True), show_progress=False).folder == first
        assert [
            (first.with_name(f"{first.name}.old-{i + 1}") / "summary.json").read_bytes() for i in range(number)
        ] == kept
        kept.append((first / "summary.json").read_bytes())
        assert len(Record(first).starts) == 1
    assert len(list(first.parent.iterdir())) == 3


def test_a_run_that_is_half_done_begins_anew_where_that_is_asked_for(config):
    with a_signal(signal.SIGINT, "step", 4), pytest.raises(Interrupted):
        train(config(), show_progress=False)
    record = train(config("force=true"), show_progress=False)
    assert len(record.starts) == 1
    assert record.spec.force is False
    assert Record(record.folder.with_name(f"{record.id}.old-1")).status == "half done"


def test_two_ranks_begin_a_run_anew_together(config):
    spec = config("devices=2", "recipe.epochs=1")
    first, second = (on_ranks(quiet_train, (own,), (own,)) for own in (spec, spec.changed(force=True)))
    assert [answer.summary["total_steps"] for answer in (*first, *second)] == [3] * 4
    assert sorted(path.name for path in second[0].folder.parent.iterdir()) == [second[0].id, f"{second[0].id}.old-1"]


def test_ranks_that_we_start_begin_a_run_anew(config, monkeypatch):
    monkeypatch.setattr(spawn, "START_METHOD", "forkserver")
    spec = config("devices=2", "recipe.epochs=1")
    first = train(spec, show_progress=False)
    assert train(spec.changed(force=True), show_progress=False).done
    assert Record(first.folder.with_name(f"{first.id}.old-1")).done


def test_ranks_that_we_start_tell_that_the_run_has_diverged(config, monkeypatch):
    monkeypatch.setattr(spawn, "START_METHOD", "forkserver")
    spec = config("devices=2", *DIVERGES)
    with pytest.raises(Diverged, match="the loss is not finite by step"):
        train(spec, show_progress=False)
    monkeypatch.setattr(loop, "spawn", lambda *arguments: pytest.fail("the run was started again"))
    with pytest.raises(Diverged, match="the loss is not finite by step"):
        train(spec, show_progress=False)


def test_two_ranks_do_not_train_a_run_that_has_diverged(config):
    spec = config("devices=2")
    record = open_record(spec)
    with record.training(spec):
        record.diverge(3, "it diverged")
    errors = on_ranks(quiet_train, (spec,), (spec,))
    assert [(type(error), str(error)) for error in errors] == [(Diverged, "it diverged")] * 2
    assert record.starts == []
