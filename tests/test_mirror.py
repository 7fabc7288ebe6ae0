"""Weights & Biases: written to, never read, never in the way of a run."""

import sys
import time
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from rst.experiments.imports import OfflineRun, messages
from rst.experiments.record import Record, open_record
from rst.training import train


def kind(message: Any) -> str:
    return message.WhichOneof("record_type")


def assert_complete(record: Record) -> None:
    assert [line["epoch"] for line in record.metrics] == [0, 1]
    assert record.done


def finished_log(folder: Path) -> Path:
    """The log of the one start in the folder, once W&B's own process, in its own time, has written it to its end."""
    (log,) = folder.rglob("run-*.wandb")
    deadline = time.monotonic() + 30
    while "exit" not in map(kind, messages(log)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return log


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_without_a_key_the_run_is_written_offline_with_its_steps_and_its_summary(config, monkeypatch, tmp_path, mode):
    pytest.importorskip("wandb")
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "WANDB_DIR", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="W&B gets no more")
        cfg = config(f"wandb.mode={mode}", "wandb.group=specification", "wandb.job_type='G-RST[50%]'")
        record = train(cfg, show_progress=False)
    assert_complete(record)

    log = finished_log(record.folder)
    (run,) = (message.run for message in messages(log) if kind(message) == "run")
    assert (run.run_id, run.display_name, run.project) == (record.id, record.id, "rst")
    assert (run.run_group, run.job_type) == ("specification", "G-RST[50%]")
    assert list(run.tags) == ["wrn10_1", "digits", "grst", "paper"]
    metrics = [message.metric for message in messages(log) if kind(message) == "metric"]
    assert [(metric.name, metric.glob_name, metric.step_metric) for metric in metrics] == [
        ("step", "", ""),
        ("", "*", "step"),
    ]
    copy = OfflineRun([log])
    assert own(copy.config) == OmegaConf.to_container(record.config) | {"environment": record.environment}
    assert own(copy.summary) == record.summary
    history = [own(line) for line in copy.scan_history()]
    assert history == [{key: line[key] for key in line if line[key] is not None} for line in record.metrics]
    assert all({"step", "propagations", "train_seconds", "test_error"} <= line.keys() for line in history)


def own(values: dict[str, Any]) -> dict[str, Any]:
    """Without what W&B adds."""
    return {key: value for key, value in values.items() if not key.startswith("_")}


class Broken:
    """A stand-in for W&B whose named function raises; the others work, and count their calls."""

    def __init__(self, name: str) -> None:
        self.name, self.calls = name, []
        settings = types.SimpleNamespace(api_key=None, base_url="https://api.wandb.ai")
        self.setup = lambda: types.SimpleNamespace(settings=settings)
        self.summary = self  # which has, besides a result, one metric of an epoch
        for method in ("define_metric", "log", "update", "finish"):
            setattr(self, method, lambda *args, method=method, **kwargs: self._call(method))

    def Settings(self, **settings: Any) -> dict[str, Any]:
        return settings

    def init(self, **arguments: Any) -> "Broken":
        self._call("init")
        return self

    def keys(self) -> list[str]:
        return ["test_error", "lr"]

    def __delitem__(self, key: str) -> None:
        self._call("delete")

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.name:
            raise ConnectionError("no network")


@pytest.mark.parametrize("name", ["init", "define_metric", "log", "delete", "update", "finish"])
def test_where_wandb_raises_there_is_one_warning_and_the_run_goes_on(config, monkeypatch, name):
    wandb = Broken(name)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with pytest.warns(UserWarning, match="W&B") as caught:
        record = train(config("wandb.mode=online"), show_progress=False)
    assert_complete(record)
    assert [str(warning.message) for warning in caught] == [
        "W&B gets no more of this run (no network); the record is not touched by it."
    ]
    assert wandb.calls.count(name) == 1


@pytest.mark.slow
def test_where_wandb_cannot_be_reached_there_is_one_warning_and_the_run_goes_on(config, monkeypatch, tmp_path):
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # where nobody listens
    with pytest.warns(UserWarning, match="W&B gets no more of this run") as caught:
        record = train(config("wandb.mode=online"), show_progress=False)
    assert_complete(record)
    assert len(caught) == 1


def test_where_wandb_is_not_installed_there_is_one_warning_and_the_run_goes_on(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.warns(UserWarning, match="W&B gets no more of this run") as caught:
        record = train(config("wandb.mode=offline"), show_progress=False)
    assert_complete(record)
    assert len(caught) == 1


def test_a_run_that_fails_is_ended_there_too(config, monkeypatch):
    wandb = Broken("nothing")
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with pytest.raises(Exception, match="not finite"):
        train(config("wandb.mode=offline", "optimizer.lr=1e38", "recipe.clip_norm=null"), show_progress=False)
    assert wandb.calls[-1] == "finish"
    assert "update" not in wandb.calls


def test_disabled_does_not_even_import_it(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it is an error
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_complete(train(config("wandb.mode=disabled"), show_progress=False))


def test_the_id_is_that_of_the_record_whatever_the_mode(config):
    assert len({open_record(config(f"wandb.mode={mode}")).id for mode in ("online", "offline", "disabled")}) == 1
