"""The mirror of a run at Weights & Biases: what it gets, and that it is never in the way of the run."""

import subprocess
import sys
import time
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from wandb_server import Server, StoredRun, server_of_wandb, without_account

from rst.experiments.runs.mirror import FILES, Mirror
from rst.experiments.runs.record import Record, open_record
from rst.experiments.spec import RunSpec
from rst.experiments.training import train

NAMES = ("wandb.group=specification", "wandb.job_type='G-RST[50%]'")


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_account(monkeypatch, tmp_path / "home")


@pytest.fixture
def server(_no_account: None, monkeypatch: pytest.MonkeyPatch) -> Server:
    with server_of_wandb(monkeypatch) as server:
        yield server


@pytest.fixture
def started(config: Callable[..., RunSpec]) -> Callable[..., tuple[Mirror, Record]]:
    """Start a run, as the training loop does; its mirror and its record."""

    def start(*overrides: str) -> tuple[Mirror, Record]:
        spec = config(*overrides)
        record = open_record(spec)
        with record.training(spec):
            record.append_start({"device": "cpu"})
        return Mirror(spec, record), record

    return start


def copies(record: Record) -> Path:
    """The folder of the copied files in the one W&B run folder of a record."""
    (folder,) = (record.folder / "wandb").glob("*run-*/files/record")
    return folder


def assert_complete(record: Record) -> None:
    assert [line["epoch"] for line in record.metrics] == [0, 1]
    assert record.done


def assert_mirrored(run: StoredRun, record: Record) -> None:
    sent = run.attributes
    assert (sent["name"], sent["displayName"], sent["project"]) == (record.id, record.id, "rst")
    assert (sent["groupName"], sent["jobType"]) == ("specification", "G-RST[50%]")
    assert sent["tags"] == ["wrn10_1", "digits", "grst", "paper"]
    assert run.config == record.spec.dump() | {"environment": record.environment}
    assert run.summary == pytest.approx(record.summary)
    history = [{key: value for key, value in line.items() if not key.startswith("_")} for line in run.history]
    assert history == [{key: line[key] for key in line if line[key] is not None} for line in record.metrics]
    for name in FILES:
        assert run.files[f"record/{name}"] == (record.folder / name).read_bytes()


# --------------------------------------------------------------------------------------------------- what W&B gets


def test_the_server_gets_the_run_with_its_history_its_results_and_the_files_of_its_record(config, server):
    record = train(config("wandb.mode=online", *NAMES), show_progress=False)
    assert_mirrored(server.runs[record.id], record)


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_without_a_key_the_run_folder_has_copies_of_the_records_files(config, mode):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="W&B gets no more")
        record = train(config(f"wandb.mode={mode}"), show_progress=False)
    assert_complete(record)
    folder = copies(record)
    assert folder.parents[1].name.startswith("offline-run-")
    assert {path.name for path in folder.iterdir()} == {*FILES}
    for name in FILES:
        assert not (folder / name).is_symlink()
        assert (folder / name).read_bytes() == (record.folder / name).read_bytes()


def test_where_online_is_asked_for_without_a_key_one_sentence_names_the_folder_to_sync(started):
    with pytest.warns(UserWarning, match="W&B") as caught:
        mirror, record = started("wandb.mode=online")
    mirror.close()
    (sentence,) = (str(warning.message) for warning in caught)
    assert sentence.startswith("W&B finds no API key")
    assert f"wandb sync {copies(record).parents[1]} sends it" in sentence


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_a_run_that_does_not_ask_for_online_says_nothing_of_keys(started, mode):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        started(f"wandb.mode={mode}")[0].close()


def test_wandb_sync_brings_to_the_server_what_a_run_with_network_sends(config, server):
    record = train(config("wandb.mode=offline", *NAMES), show_progress=False)
    assert not server.runs
    subprocess.run([sys.executable, "-m", "wandb", "sync", copies(record).parents[1]], check=True)
    assert_mirrored(server.runs[record.id], record)


def test_the_horizontal_axis_of_every_metric_is_the_step(started, server):
    mirror, _ = started("wandb.mode=online")
    mirror.log({"step": 3, "test_error": 12.5})
    mirror.close()
    (run,) = server.runs.values()
    step, every = run.metrics
    assert step["1"] == "step"
    assert every["5"] == 1


def test_a_run_that_does_not_finish_has_its_config_alone_and_its_latest_metrics_as_summary(started, server):
    mirror, record = started("wandb.mode=online")
    mirror.log({"step": 3, "test_error": 50.0})
    mirror.log({"step": 6, "test_error": 25.0})
    mirror.close()
    (run,) = server.runs.values()
    assert run.summary == {"step": 6, "test_error": 25.0}
    assert [path.name for path in copies(record).iterdir()] == ["config.yaml"]


def test_another_open_run_of_the_process_is_left_alone(started, tmp_path):
    import wandb

    with wandb.init(mode="offline", dir=tmp_path, id="notebook", settings=wandb.Settings(silent=True)) as open_run:
        mirror, record = started("wandb.mode=offline")
        mirror.log({"test_error": 12.5})
        mirror.close()
        assert open_run.summary.get("test_error") is None
        open_run.log({"own": 1})
    assert copies(record).parents[1].name.endswith(record.id)


def test_the_id_is_that_of_the_record_whatever_the_mode(config):
    assert len({open_record(config(f"wandb.mode={mode}")).id for mode in ("online", "offline", "disabled")}) == 1


# --------------------------------------------------------------------------------------- never in the way of the run


class Broken:
    """A stand-in for W&B's client: the named function raises; the others do nothing. All calls are counted."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.calls, self.dir = name, [], folder
        settings = types.SimpleNamespace(api_key="a key", base_url="https://api.wandb.ai")
        self.setup = lambda: types.SimpleNamespace(settings=settings)
        self.summary = self  # It has a result and one other metric of an epoch.
        for method in ("define_metric", "log", "update", "save", "finish"):
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


@pytest.mark.parametrize("name", ["init", "define_metric", "log", "delete", "update", "save", "finish"])
def test_where_wandb_raises_there_is_one_warning_and_the_run_goes_on(config, monkeypatch, tmp_path, name):
    wandb = Broken(name, tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with pytest.warns(UserWarning, match="W&B") as caught:
        record = train(config("wandb.mode=online"), show_progress=False)
    assert_complete(record)
    assert [str(warning.message) for warning in caught] == [
        "W&B gets no more of this run (no network); the record is not touched by it."
    ]
    assert wandb.calls.count(name) == 1


@pytest.mark.slow
def test_where_wandb_cannot_be_reached_there_is_one_warning_and_the_run_goes_on(config, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # where nobody listens
    with pytest.warns(UserWarning, match="W&B gets no more of this run") as caught:
        record = train(config("wandb.mode=online"), show_progress=False)
    assert_complete(record)
    assert len(caught) == 1


@pytest.mark.slow
def test_a_server_that_does_not_answer_costs_ten_seconds_at_the_start(started, server):
    server.answers.clear()
    begin = time.monotonic()
    with pytest.warns(UserWarning, match="W&B gets no more of this run"):
        mirror, _ = started("wandb.mode=online")
    assert time.monotonic() - begin < 15
    mirror.log({"test_error": 12.5})
    mirror.close()
    assert time.monotonic() - begin < 15


@pytest.mark.slow
def test_a_server_that_stops_answering_costs_no_step_and_a_minute_at_the_end(started, server):
    mirror, _ = started("wandb.mode=online")
    server.answers.clear()
    begin = time.monotonic()
    for epoch in range(100):
        mirror.log({"epoch": epoch})
    assert time.monotonic() - begin < 5
    mirror.close()
    assert time.monotonic() - begin < 70


def test_where_wandb_is_not_installed_there_is_one_warning_and_the_run_goes_on(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.warns(UserWarning, match="W&B gets no more of this run") as caught:
        record = train(config("wandb.mode=offline"), show_progress=False)
    assert_complete(record)
    assert len(caught) == 1


def test_a_run_that_fails_is_ended_there_too(config, monkeypatch, tmp_path):
    wandb = Broken("nothing", tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with pytest.raises(Exception, match="not finite"):
        train(config("wandb.mode=offline", "optimizer.lr=1e38", "recipe.clip_norm=null"), show_progress=False)
    assert wandb.calls[-1] == "finish"
    assert "update" not in wandb.calls


def test_disabled_does_not_even_import_it(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # Importing it raises.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_complete(train(config("wandb.mode=disabled"), show_progress=False))
