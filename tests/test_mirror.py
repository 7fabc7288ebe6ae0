"""Weights & Biases: written to, never read, never in the way of a run."""

import struct
import sys
import time
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rst.experiments.record import Record, open_record
from rst.training import train


def kind(message: Any) -> str:
    return message.WhichOneof("record_type")


def assert_complete(record: Record) -> None:
    assert [line["epoch"] for line in record.metrics] == [0, 1]
    assert record.done


def entries(file: Path) -> Iterator[Any]:
    """What W&B's offline file holds: messages in the log format of LevelDB, in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record as Message

    content, position, parts = file.read_bytes(), 7, b""  # after a header of seven bytes
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:  # too little is left of the block for another entry
            position += 32768 - position % 32768
            continue
        _, length, part = struct.unpack_from("<IHB", content, position)
        position += 7 + length
        if position > len(content):  # still being written
            return
        parts += content[position - length : position]
        if part in (1, 4):  # whole, or the last part
            message = Message()
            message.ParseFromString(parts)
            parts = b""
            yield message


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_without_a_key_the_run_is_written_offline_with_its_steps_and_its_summary(config, monkeypatch, tmp_path, mode):
    pytest.importorskip("wandb")
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "WANDB_DIR", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="W&B gets no more")
        record = train(config(f"wandb.mode={mode}", "wandb.group=specification"), show_progress=False)
    assert_complete(record)

    (file,) = record.folder.rglob("offline-run-*/*.wandb")
    deadline = time.monotonic() + 30
    while "exit" not in map(kind, entries(file)) and time.monotonic() < deadline:
        time.sleep(0.05)  # W&B's own process writes it, in its own time
    messages = list(entries(file))
    (run,) = (message.run for message in messages if kind(message) == "run")
    assert (run.run_id, run.display_name, run.project, run.run_group) == (record.id, record.id, "rst", "specification")
    (metric,) = (message.metric for message in messages if kind(message) == "metric")
    assert (metric.glob_name, metric.step_metric) == ("*", "step")

    def values(items: Any) -> dict[str, str]:
        return {item.key or item.nested_key[0]: item.value_json for item in items}

    history = [values(m.history.item) for m in messages if kind(m) == "history"]
    assert [float(line["step"]) for line in history] == [3, 6]
    for line, metrics in zip(history, record.metrics, strict=True):
        assert {key: float(line[key]) for key in metrics if metrics[key] is not None} == pytest.approx(
            {key: value for key, value in metrics.items() if value is not None}
        )
    summary: dict[str, str] = {}
    for message in messages:
        summary |= values(message.summary.update)
    assert {key: float(summary[key]) for key in record.summary} == pytest.approx(record.summary)


class Broken:
    """A stand-in for W&B whose named function raises; the others work, and count their calls."""

    def __init__(self, name: str) -> None:
        self.name, self.calls = name, []
        settings = types.SimpleNamespace(api_key=None, base_url="https://api.wandb.ai")
        self.setup = lambda: types.SimpleNamespace(settings=settings)
        self.summary = types.SimpleNamespace(update=lambda values: self._call("update"))
        for method in ("log", "define_metric", "finish", "login"):
            setattr(self, method, lambda *args, method=method, **kwargs: self._call(method))

    def Settings(self, **settings: Any) -> dict[str, Any]:
        return settings

    def init(self, **arguments: Any) -> "Broken":
        self._call("init")
        return self

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.name:
            raise ConnectionError("no network")


@pytest.mark.parametrize("name", ["init", "define_metric", "log", "update", "finish"])
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
