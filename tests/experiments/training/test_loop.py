"""The run as a whole: what it needs, and what a person sees of it."""

import subprocess
import sys

import pytest
from conftest import ROOT

from rst.experiments.runs.record import open_record
from rst.experiments.training import loop, train

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
        *("checkpoint.pt", "checkpoint.previous.pt"),
    }
    assert record.done
