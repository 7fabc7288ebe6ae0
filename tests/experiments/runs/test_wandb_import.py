"""Records imported from W&B: the run's own, or refused in one sentence.

The client of W&B and the folders that it writes are real; the server is a stand-in.
"""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
import yaml
from wandb_server import Server, StoredRun, server_of_wandb, without_account

from rst.experiments.compose import compose
from rst.experiments.errors import InputError
from rst.experiments.report.results import results
from rst.experiments.runs.mirror import FILES
from rst.experiments.runs.record import Record, open_record
from rst.experiments.runs.wandb_import import import_runs
from rst.experiments.tables.expansion import Cell, PlannedRun, Table
from rst.experiments.training import checkpoint, train

SCRIPTS = Path(__file__).parents[3] / "scripts"


class Elsewhere(NamedTuple):
    """A run of two starts: the first failed after epoch 1, and the second went on from its checkpoint of epoch 0."""

    record: Record
    started: Path
    """W&B's folder of the first start."""
    finished: Path
    """W&B's folder of the second start. It sorts before the other."""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    folder = tmp_path_factory.mktemp("elsewhere")
    images = ("dataset=digits", "dataset.train_images=100", "dataset.test_images=40", "dataset.validation=20")
    # The tail has no sharp step in epoch 0, so that some of its metrics are None.
    run = ("model=wrn10_1", "scheme=rst", "schedule=tail", "schedule.fraction=0.5", "device=cpu")
    recipe = ("scale=smoke", "recipe.batch_size=32", "wandb.mode=offline", "wandb.group=table03")
    paths = [f"paths.{key}={folder / key}" for key in ("cache", "runs")]
    spec = compose([*images, *run, *recipe, *paths])
    record, save, saved = open_record(spec), checkpoint.save, []

    def save_once(*arguments: Any) -> None:
        if saved:
            raise OSError("disk full")
        saved.append(save(*arguments))

    def moved(name: str) -> Path:
        (log,) = record.folder.rglob("run-*.wandb")
        return log.parent.rename(folder / name)

    with pytest.MonkeyPatch.context() as patch:
        without_account(patch, folder / "home")
        patch.setattr(checkpoint, "save", save_once)
        with pytest.raises(OSError, match="disk full"):
            train(spec, show_progress=False)
        started = moved("started")
        patch.setattr(checkpoint, "save", save)
        train(spec, show_progress=False)
        yield Elsewhere(record, started, moved("finished"))


@pytest.fixture
def folders(elsewhere: Elsewhere, tmp_path: Path) -> Path:
    """A folder with W&B's folders of both starts, for a test to change."""
    for start in (elsewhere.started, elsewhere.finished):
        shutil.copytree(start, tmp_path / "wandb" / start.name, symlinks=True)
    return tmp_path / "wandb"


@pytest.fixture
def copy(folders: Path) -> Path:
    """The copied files of the start that finished."""
    return folders / "finished" / "files" / "record"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Where the records are to be."""
    return tmp_path / "runs"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def assert_imported(runs: Path, original: Record, source: str) -> None:
    """The record in ``runs`` is the original to the byte, but for where its latest start was imported from."""
    record = Record(runs / original.id)
    assert record.status == "done"
    for name in ("config.yaml", "metrics.jsonl", "summary.json"):
        assert (record.folder / name).read_bytes() == (original.folder / name).read_bytes()
    *others, latest = original.starts
    assert record.starts == [*others, latest | {"imported_from": source}]


# ------------------------------------------------------------------------------------------------- what is imported


def test_what_is_imported_is_the_record_of_the_run(elsewhere, folders, runs):
    assert any(value is None for line in elsewhere.record.metrics for value in line.values())
    assert len(elsewhere.record.starts) == 2
    assert import_runs(str(folders), runs) == ({"imported": 1}, [])
    assert_imported(runs, elsewhere.record, str(folders))


def test_a_table_of_imported_records_has_the_numbers_of_the_runs_own(elsewhere, folders, runs):
    import_runs(str(folders), runs)

    def table(record: Record) -> Table:
        spec = record.spec
        cell = Cell("table03", "", "", "RST", "", False, {}, spec, [PlannedRun(spec, record)])
        return Table("table03", "", "table", ["test_error"], "", "", "", [cell])

    imported = results(table(Record(runs / elsewhere.record.id)))
    assert list(imported["n"]) == [1]
    pd.testing.assert_frame_equal(imported, results(table(elsewhere.record)))


def test_a_start_that_did_not_come_to_the_end_is_skipped(elsewhere, runs):
    assert import_runs(str(elsewhere.started), runs) == ({"not finished": 1}, [])
    assert not runs.exists()


def test_the_start_that_finished_has_the_whole_run(elsewhere, runs):
    assert import_runs(str(elsewhere.finished), runs) == ({"imported": 1}, [])
    assert_imported(runs, elsewhere.record, str(elsewhere.finished))


def test_a_record_that_is_done_is_kept(folders, runs):
    import_runs(str(folders), runs)
    before = contents(runs)
    assert import_runs(str(folders), runs) == ({"already there": 1}, [])
    assert contents(runs) == before


def test_a_run_that_can_go_on_here_is_kept(elsewhere, folders, runs):
    record = Record(runs / elsewhere.record.id)
    with record.training(elsewhere.record.spec):
        record.append({"epoch": 0})
        record.checkpoint.write_bytes(b"half way")
    before = contents(runs)
    assert import_runs(str(folders), runs) == ({"already there": 1}, [])
    assert contents(runs) == before


def test_an_import_that_was_killed_is_made_whole(elsewhere, folders, runs):
    record = Record(runs / elsewhere.record.id)
    with record.training(elsewhere.record.spec):
        record.append({"epoch": 0, "step": 7})
    assert import_runs(str(folders), runs) == ({"imported": 1}, [])
    assert_imported(runs, elsewhere.record, str(folders))


def test_the_summary_is_written_last(elsewhere, folders, runs, monkeypatch):
    def stop(record: Record, summary: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Record, "finish", stop)
    with pytest.raises(KeyboardInterrupt):
        import_runs(str(folders), runs)
    record = Record(runs / elsewhere.record.id)
    assert not record.done
    assert record.metrics == elsewhere.record.metrics
    assert record.starts[-1]["imported_from"] == str(folders)


# --------------------------------------------------------------------------------------------------- what is refused


def test_a_run_that_is_being_trained_here_is_refused(elsewhere, folders, runs):
    record = Record(runs / elsewhere.record.id)
    with record.training(elsewhere.record.spec):
        counts, sentences = import_runs(str(folders), runs)
    assert (counts, sentences) == ({"refused": 1}, [f"run {record.id} is being trained by another process."])
    assert not record.done


@pytest.mark.parametrize("name", ["config.yaml", "starts.jsonl", "metrics.jsonl"])
def test_a_run_that_lacks_a_file_is_refused(elsewhere, folders, copy, runs, name):
    (copy / name).unlink()
    sentence = f"{elsewhere.record.id} lacks its {name}, or the end of it: sync or copy the run again."
    assert import_runs(str(folders), runs) == ({"refused": 1}, [sentence])
    assert not runs.exists()


@pytest.mark.parametrize("name", ["starts.jsonl", "metrics.jsonl", "summary.json"])
@pytest.mark.parametrize("end", [-5, 0], ids=["its end", "all of it"])
def test_a_run_with_a_file_that_is_cut_off_is_refused(elsewhere, folders, copy, runs, name, end):
    (copy / name).write_bytes((copy / name).read_bytes()[:end])
    counts, (sentence,) = import_runs(str(folders), runs)
    assert counts == {"refused": 1}
    assert sentence.startswith(f"{elsewhere.record.id} ")
    assert "copy the run again" in sentence
    assert not runs.exists()


def test_a_summary_of_another_version_is_refused(folders, copy, runs):
    summary = json.loads((copy / "summary.json").read_text())
    del summary["propagations"]
    (copy / "summary.json").write_text(json.dumps(summary))
    counts, (sentence,) = import_runs(str(folders), runs)
    assert counts == {"refused": 1}
    assert "of another version" in sentence


def test_one_run_that_is_refused_does_not_keep_the_others_from_being_imported(elsewhere, folders, runs):
    shutil.copytree(folders / "finished", folders / "a", symlinks=True)
    (log,) = (folders / "a").glob("run-*.wandb")
    log.rename(log.with_name("run-another.wandb"))
    counts, (sentence,) = import_runs(str(folders), runs)
    assert counts == {"refused": 1, "imported": 1}
    assert sentence.startswith(f"another has the config of {elsewhere.record.id}: it was edited")


def test_a_run_under_another_id_is_refused(elsewhere, folders, runs):
    for log in folders.rglob("*.wandb"):
        log.rename(log.with_name("run-digits-s0-0123456789.wandb"))
    counts, (sentence,) = import_runs(str(folders), runs)
    assert counts == {"refused": 1}
    assert sentence.startswith(f"digits-s0-0123456789 has the config of {elsewhere.record.id}")
    assert not runs.exists()


def test_a_run_whose_config_was_edited_is_refused(elsewhere, folders, copy, runs):
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["optimizer"]["lr"] = 0.123
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    counts, (sentence,) = import_runs(str(folders), runs)
    assert counts == {"refused": 1}
    assert sentence.startswith(f"{elsewhere.record.id} has the config of ")
    assert not runs.exists()


@pytest.mark.parametrize(
    "config",
    [
        "[1, 2]",
        "lr: 0.1",
        "network: [",
        "!!python/object/apply:os.mkdir ['{folder}']",
        "network: !!python/object/apply:os.mkdir ['{folder}']",
    ],
    ids=["list", "of another project", "broken", "code", "code in a value"],
)
def test_a_config_of_another_project_is_refused_and_runs_no_code(elsewhere, folders, copy, runs, tmp_path, config):
    (copy / "config.yaml").write_text(config.format(folder=tmp_path / "made"))
    counts, (sentence,) = import_runs(str(folders), runs)
    assert counts == {"refused": 1}
    assert sentence.startswith(f"{elsewhere.record.id} has a config that is not one of this project's: ")
    assert "\n" not in sentence
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("group", ["schedule", "model", "optimizer", "variant"])
def test_a_config_from_elsewhere_cannot_name_code(folders, copy, runs, tmp_path, group):
    config = yaml.safe_load((copy / "config.yaml").read_text())
    call = {"_target_": "os.mkdir", "path": str(tmp_path / "made")}
    config[group] = {"name": "os.mkdir"} | call
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    counts, _ = import_runs(str(folders), runs)
    assert counts == {"refused": 1}
    assert not (tmp_path / "made").exists()


# ------------------------------------------------------------------------------------------------------- the server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    without_account(monkeypatch, tmp_path / "home")
    with server_of_wandb(monkeypatch) as server:
        yield server


@pytest.fixture
def on_server(elsewhere: Elsewhere, server: Server) -> StoredRun:
    """The run as ``wandb sync`` leaves it on the server: see the tests of the mirror."""
    run = server.runs[elsewhere.record.id]
    run.attributes["groupName"] = "table03"
    run.files = {f"record/{name}": (elsewhere.record.folder / name).read_bytes() for name in FILES}
    return run


def test_a_run_on_the_server_gives_its_record_too(elsewhere, on_server, runs):
    assert import_runs("someone/rst", runs) == ({"imported": 1}, [])
    assert_imported(runs, elsewhere.record, "someone/rst")


def test_a_run_that_was_mirrored_with_network_is_imported_from_the_server(config, server, runs):
    record = train(config("wandb.mode=online", "wandb.group=table03"), show_progress=False)
    assert import_runs("someone/rst", runs / "imported", "table03") == ({"imported": 1}, [])
    assert_imported(runs / "imported", record, "someone/rst")


def test_a_run_on_the_server_that_is_done_here_is_not_downloaded(on_server, runs):
    import_runs("someone/rst", runs)
    on_server.files.clear()
    assert import_runs("someone/rst", runs) == ({"already there": 1}, [])


def test_a_run_on_the_server_without_results_is_skipped(on_server, runs):
    del on_server.files["record/summary.json"]
    assert import_runs("someone/rst", runs) == ({"not finished": 1}, [])
    assert not runs.exists()


def test_metrics_that_are_not_finite_come_back_from_the_server(elsewhere, on_server, runs):
    first, second = elsewhere.record.metrics
    second |= {"loss_gap": float("inf"), "perturbed_loss": float("nan")}
    on_server.files["record/metrics.jsonl"] = "".join(json.dumps(line) + "\n" for line in (first, second)).encode()
    import_runs("someone/rst", runs)
    line = Record(runs / elsewhere.record.id).metrics[1]
    assert line["loss_gap"] == float("inf")
    assert line["perturbed_loss"] != line["perturbed_loss"]


@pytest.mark.parametrize("source", ["someone/rst", "wandb"])
def test_a_group_takes_its_runs_only(on_server, folders, runs, source, monkeypatch):
    monkeypatch.chdir(folders.parent)
    with pytest.raises(InputError, match=f"{re.escape(source)} has no W&B runs of group table04"):
        import_runs(source, runs, "table04")
    assert import_runs(source, runs, "table03") == ({"imported": 1}, [])


@pytest.mark.parametrize("group", ["table03", "table04"])
def test_a_group_knows_its_runs_that_did_not_finish(elsewhere, runs, group):
    if group == "table03":
        assert import_runs(str(elsewhere.started), runs, group) == ({"not finished": 1}, [])
    else:
        with pytest.raises(InputError, match="has no W&B runs of group table04"):
            import_runs(str(elsewhere.started), runs, group)


def test_a_run_of_another_project_is_refused_and_the_others_are_imported(server, on_server, runs):
    server.runs["abc"].files = {f"record/{name}": b"{}\n" for name in FILES}
    counts, (sentence,) = import_runs("someone/rst", runs)
    assert counts == {"refused": 1, "imported": 1}
    assert sentence.startswith("abc has a config that is not one of this project's")


def test_a_run_that_cannot_be_downloaded_is_refused_and_the_others_are_imported(server, on_server, runs):
    server.runs["abc"].files = dict(on_server.files)
    server.lost.add("/file/abc/record/metrics.jsonl")
    counts, (sentence,) = import_runs("someone/rst", runs)
    assert counts == {"refused": 1, "imported": 1}
    assert sentence.startswith("abc cannot be imported: ")
    assert "404" in sentence


# ------------------------------------------------------------------------------------------------------- the script


def test_the_script_ends_by_saying_what_was_imported_and_where_to(folders, runs, script, capsys):
    assert script("import_wandb", str(folders), f"paths.runs={runs}") == 0
    expected = f"{folders}: 1 imported, 0 already there, 0 not finished, 0 refused. Records: {runs}\n"
    assert capsys.readouterr().out == expected


def test_the_script_says_what_it_refused_and_fails(elsewhere, folders, copy, runs, script, capsys):
    (copy / "metrics.jsonl").unlink()
    assert script("import_wandb", str(folders), f"paths.runs={runs}") == 1
    output = capsys.readouterr()
    assert f"import_wandb.py: refused: {elsewhere.record.id} lacks its metrics.jsonl" in output.err
    assert "0 imported" in output.out


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("../nowhere", "../nowhere is not a folder here, nor ENTITY/PROJECT on W&B's server: write one of them."),
        ("other/rst", "other/rst, which is no folder here, cannot be imported: Could not find project rst."),
        (str(SCRIPTS), f"{SCRIPTS} has no W&B runs."),
    ],
)
def test_a_source_without_runs_is_one_sentence(server, runs, script, capsys, source, message):
    assert script("import_wandb", source, f"paths.runs={runs}") == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"import_wandb.py: {message}"
