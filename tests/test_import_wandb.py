"""Records made from W&B's copy of a run: its own, or refused in a sentence. The logs are real; the server is not."""

import re
import shutil
import struct
import zlib
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import ROOT
from omegaconf import OmegaConf
from test_mirror import finished_log

from rst.experiments.config import InputError, load_config
from rst.experiments.imports import BLOCK, HEADER, OfflineRun, import_runs, messages
from rst.experiments.record import Record, open_record
from rst.experiments.sweep import Cell, Job, Table
from rst.report.results import results
from rst.training import checkpoint, train

wandb = pytest.importorskip("wandb")
Message = pytest.importorskip("wandb.proto.wandb_internal_pb2").Record
SCRIPTS = ROOT / "scripts"


@dataclass
class Elsewhere:
    """A run of two starts: the first failed after epoch 1, and the second went on from its checkpoint of epoch 0."""

    record: Record
    starts: tuple[Path, Path]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    folder = tmp_path_factory.mktemp("elsewhere")
    images = ("dataset=digits", "dataset.train_images=100", "dataset.test_images=40", "dataset.validation=20")
    run = (
        "model=wrn10_1",
        "scheme=rst",
        "schedule=tail",
        "schedule.fraction=0.5",
        "device=cpu",
    )  # no sharp step at first
    recipe = ("scale=smoke", "recipe.batch_size=32", "wandb.mode=offline", "wandb.group=table03")
    paths = [f"paths.{key}={folder / key}" for key in ("data", "cache", "runs")]
    cfg = load_config([*images, *run, *recipe, *paths])
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "WANDB_DIR", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"):
            patch.setenv(name, str(folder / "home"))
        save, saved = checkpoint.save, []

        def save_once(*arguments: Any) -> None:
            if saved:
                raise OSError("disk full")
            saved.append(save(*arguments))

        starts = []
        patch.setattr(checkpoint, "save", save_once)
        with pytest.raises(OSError, match="disk full"):
            train(cfg, show_progress=False)
        starts.append(finished_log(open_record(cfg).folder).parent.rename(folder / "first"))
        patch.setattr(checkpoint, "save", save)
        record = train(cfg, show_progress=False)
        starts.append(finished_log(record.folder).parent.rename(folder / "second"))
    return Elsewhere(record, tuple(starts))


@pytest.fixture
def logs(elsewhere: Elsewhere, tmp_path: Path) -> Path:
    """A folder with the logs of both starts, to be changed at will."""
    for start in elsewhere.starts:
        shutil.copytree(start, tmp_path / "logs" / start.name)
    return tmp_path / "logs"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Where the records are to be."""
    return tmp_path / "runs"


def without_none(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if value is not None} for line in lines]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_what_is_imported_is_the_record_of_the_run(elsewhere, logs, runs):
    assert import_runs(str(logs), runs) == ({"imported": 1}, [])
    record = Record(runs / elsewhere.record.id)
    assert record.status == "done"
    assert record.summary == elsewhere.record.summary
    assert record.config == elsewhere.record.config
    assert record.environment == elsewhere.record.environment | {"imported_from": str(logs)}
    assert any(value is None for line in elsewhere.record.metrics for value in line.values())
    assert record.metrics == without_none(elsewhere.record.metrics)


def test_a_table_of_imported_records_has_the_numbers_of_the_runs_own(elsewhere, logs, runs):
    import_runs(str(logs), runs)

    def table(record: Record) -> Table:
        cfg = record.config
        cell = Cell("table03", "", "", "RST", "", False, {}, cfg, [Job(cfg, record)])
        return Table("table03", "", "table", ["test_error"], "", [cell])

    imported = results(table(Record(runs / elsewhere.record.id)))
    assert list(imported["n"]) == [1]
    pd.testing.assert_frame_equal(imported, results(table(elsewhere.record)))


def test_a_start_that_did_not_come_to_the_end_is_skipped(elsewhere, runs):
    assert import_runs(str(elsewhere.starts[0]), runs) == ({"not finished": 1}, [])
    assert not runs.exists()


def test_a_later_start_without_the_one_before_is_refused(elsewhere, runs):
    counts, (sentence,) = import_runs(str(elsewhere.starts[1]), runs)
    assert counts == {"refused": 1}
    assert "lacks 1 of its 2 epochs, of which epoch 0 is the first" in sentence
    assert not runs.exists()


def test_a_record_that_is_at_hand_is_kept(elsewhere, logs, runs):
    import_runs(str(logs), runs)
    before = contents(runs)
    assert import_runs(str(logs), runs) == ({"already there": 1}, [])
    assert contents(runs) == before


def test_a_run_that_can_go_on_here_is_kept(elsewhere, logs, runs):
    record = Record(runs / elsewhere.record.id)
    with record.training(elsewhere.record.config):
        record.append({"epoch": 0})
        record.checkpoint.write_bytes(b"half way")
    before = contents(runs)
    assert import_runs(str(logs), runs) == ({"already there": 1}, [])
    assert contents(runs) == before


def test_an_import_that_was_killed_is_made_whole(elsewhere, logs, runs):
    record = Record(runs / elsewhere.record.id)
    with record.training(elsewhere.record.config):
        record.append({"epoch": 0, "step": 7})
    assert import_runs(str(logs), runs) == ({"imported": 1}, [])
    assert record.metrics == without_none(elsewhere.record.metrics)


def test_a_run_that_is_being_trained_here_is_refused(elsewhere, logs, runs):
    record = Record(runs / elsewhere.record.id)
    with record.training(elsewhere.record.config):
        counts, sentences = import_runs(str(logs), runs)
    assert (counts, sentences) == ({"refused": 1}, [f"run {record.id} is being trained by another process."])
    assert not record.done


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda content: content[:6] + b"\x01" + content[7:], "wandb sync"),
        (lambda content: content[:5000] + bytes([content[5000] ^ 1]) + content[5001:], "is damaged before byte"),
    ],
    ids=["version", "damage"],
)
def test_a_log_that_cannot_be_read_is_refused_and_the_others_are_imported(elsewhere, logs, runs, spoil, message):
    log = logs / "third" / "run-a.wandb"
    log.parent.mkdir()
    log.write_bytes(spoil((elsewhere.starts[1] / f"run-{elsewhere.record.id}.wandb").read_bytes()))
    counts, (sentence,) = import_runs(str(logs), runs)
    assert counts == {"refused": 1, "imported": 1}
    assert str(log) in sentence
    assert message in sentence


def test_the_log_of_a_start_that_was_killed_is_read_as_far_as_it_goes(elsewhere, tmp_path):
    log = next(elsewhere.starts[1].glob("*.wandb"))
    whole, cut = list(messages(log)), tmp_path / "cut.wandb"
    for size in range(0, log.stat().st_size, 97):
        cut.write_bytes(log.read_bytes()[:size])
        read = list(messages(cut))
        assert read == whole[: len(read)]
        assert len(read) < len(whole)


def test_a_message_that_is_longer_than_a_block_of_the_log_is_read_whole(elsewhere, tmp_path):
    values = {f"key{i}": "x" * i for i in (1, 32_700, 32_760, 32_768, 100_000)}
    with wandb.init(mode="offline", dir=tmp_path, config=values, settings=wandb.Settings(silent=True)):
        pass
    assert OfflineRun([finished_log(tmp_path)]).config.items() >= values.items()


def test_messages_are_read_wherever_a_block_ends(tmp_path):
    log = tmp_path / "run-a.wandb"
    for length in range(BLOCK - 50, BLOCK + 10):
        written = [Message(num=1, run={"notes": "x" * length}), Message(num=2, run={"notes": "y"})]
        content = HEADER
        for message in written:
            rest, first = message.SerializeToString(), True
            while first or rest:
                left = BLOCK - len(content) % BLOCK
                if left < 7:
                    content += bytes(left)
                    continue
                entry, rest = rest[: left - 7], rest[left - 7 :]
                part = (2 if first else 3) if rest else (1 if first else 4)
                checksum = zlib.crc32(bytes([part]) + entry)
                content, first = content + struct.pack("<IHB", checksum, len(entry), part) + entry, False
        log.write_bytes(content)
        assert list(messages(log)) == written


def test_a_log_under_another_id_is_refused(elsewhere, logs, runs):
    for log in logs.rglob("*.wandb"):
        log.rename(log.with_name("run-digits-s0-0123456789.wandb"))
    counts, (sentence,) = import_runs(str(logs), runs)
    assert counts == {"refused": 1}
    assert sentence.startswith(f"digits-s0-0123456789 has the config of {elsewhere.record.id}")
    assert not runs.exists()


# ------------------------------------------------------------------------------------------------------- the server


@dataclass
class ServerRun:
    """What W&B's documentation says that a run of ``wandb.Api`` has, as far as it is read."""

    id: str
    group: str
    config: dict[str, Any]
    summary: dict[str, Any]
    history: list[dict[str, Any]]

    def scan_history(self) -> Iterator[dict[str, Any]]:
        return iter(self.history)


@pytest.fixture
def on_server(elsewhere: Elsewhere) -> ServerRun:
    """The run after ``wandb sync``; the server knows no number but those of JSON, and fills the lines of its tables."""
    record = elsewhere.record
    own = {"_step": 1, "_runtime": 0.5, "_timestamp": 1e9, "_wandb": {"runtime": 1}}
    return ServerRun(
        record.id,
        "table03",
        OmegaConf.to_container(record.config) | {"environment": record.environment},
        record.summary | own,
        [line | own for line in deepcopy(record.metrics)],
    )


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, on_server: ServerRun) -> list[ServerRun]:
    """The runs of someone/rst."""
    its_runs = [on_server]

    class Api:
        def runs(self, path: str, filters: dict[str, str]) -> list[ServerRun]:
            if path != "someone/rst":
                raise ValueError(f"Could not find project {path}\nand more")
            return [run for run in its_runs if all(getattr(run, key) == filters[key] for key in filters)]

    monkeypatch.setattr(wandb, "Api", Api)
    return its_runs


def test_the_servers_copy_gives_the_record_too(elsewhere, server, runs):
    assert import_runs("someone/rst", runs) == ({"imported": 1}, [])
    record = Record(runs / elsewhere.record.id)
    assert record.summary == elsewhere.record.summary
    assert record.config == elsewhere.record.config
    assert record.environment == elsewhere.record.environment | {"imported_from": "someone/rst"}
    assert record.metrics == without_none(elsewhere.record.metrics)


def test_numbers_that_are_not_finite_come_back_from_the_servers_texts(server, on_server, runs):
    on_server.history[1] |= {"loss_gap": "Infinity", "perturbed_loss": "NaN"}
    import_runs("someone/rst", runs)
    line = Record(runs / on_server.id).metrics[1]
    assert line["loss_gap"] == float("inf")
    assert line["perturbed_loss"] != line["perturbed_loss"]


@pytest.mark.parametrize("group", ["table03", "table04"])
def test_a_group_takes_its_runs_only(server, on_server, elsewhere, logs, runs, group):
    if group == "table03":
        assert import_runs("someone/rst", runs, group) == ({"imported": 1}, [])
        assert import_runs(str(logs), runs, group) == ({"already there": 1}, [])
    else:
        for source in ("someone/rst", str(logs)):
            with pytest.raises(InputError, match=f"{re.escape(source)} has no W&B runs of group table04"):
                import_runs(source, runs, group)


def test_a_run_of_another_project_is_refused_and_the_others_are_imported(server, on_server, runs):
    server.insert(0, replace(on_server, id="abc", config={"lr": 0.1, "environment": "none"}))
    counts, (sentence,) = import_runs("someone/rst", runs)
    assert counts == {"refused": 1, "imported": 1}
    assert sentence.startswith("abc has a config that is not one of this project's")


@pytest.mark.parametrize(
    "schedule", [{}, {"_target_": "rst.schedules.constant", "p": "${call}"}], ids=["called", "called for p"]
)
def test_a_config_from_elsewhere_cannot_call_what_it_likes(server, on_server, runs, tmp_path, schedule):
    call = {"_target_": "os.mkdir", "path": str(tmp_path / "made")}
    on_server.config |= {"schedule": schedule or call, "call": call}
    counts, (sentence,) = import_runs("someone/rst", runs)
    assert counts == {"refused": 1}
    assert "its schedule is" in sentence
    assert not (tmp_path / "made").exists()


# ------------------------------------------------------------------------------------------------------- the script


def test_the_script_ends_by_saying_what_was_imported_and_where_to(logs, runs, script, capsys):
    assert script("import_wandb", str(logs), f"paths.runs={runs}") == 0
    expected = f"{logs}: 1 imported, 0 already there, 0 not finished, 0 refused. Records: {runs}\n"
    assert capsys.readouterr().out == expected


def test_the_script_says_what_it_refused_and_fails(elsewhere, runs, script, capsys):
    assert script("import_wandb", str(elsewhere.starts[1]), f"paths.runs={runs}") == 1
    output = capsys.readouterr()
    assert f"import_wandb.py: refused: {elsewhere.record.id} lacks 1 of its 2 epochs" in output.err
    assert "0 imported" in output.out


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("../nowhere", "../nowhere is not a folder here, nor ENTITY/PROJECT on W&B's server: write one of them."),
        ("other/rst", "other/rst, which is no folder here, cannot be imported: Could not find project other/rst"),
        (str(SCRIPTS), f"{SCRIPTS} has no W&B runs."),
    ],
)
def test_a_source_without_runs_is_one_sentence(server, runs, script, capsys, source, message):
    assert script("import_wandb", source, f"paths.runs={runs}") == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"import_wandb.py: {message}"
