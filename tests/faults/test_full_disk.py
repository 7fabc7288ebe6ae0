"""Full disks, folders that cannot be written and processes that want the same: one sentence, and nothing is lost."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PROCESSES, on_ranks, train_py
from helpers import train_quietly, train_rank
from test_resume import assert_same_outcome
from test_sources import EXPECTED, SPEC, write_parquet

from rst.data import cifar
from rst.data.cifar import load_spec
from rst.experiments.record import open_record
from rst.training import distributed

pytestmark = pytest.mark.faults

EPOCHS = "recipe.epochs=3"


class Disk:
    """A disk of its own in memory, which a test may fill or make read-only."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._ballast = folder, folder / "ballast"

    def mount(self, options: str) -> str:
        """What mount has to say against it, if anything."""
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.folder)]
        try:
            return subprocess.run(command, capture_output=True, text=True).stderr.strip()
        except FileNotFoundError:
            return "there is no mount"

    def leave(self, pages: int) -> None:
        """Fill it but for so many pages of 4 KiB."""
        with self._ballast.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)) == 4096:
                    pass
            except OSError:
                pass
            file.truncate(max(0, file.tell() - 4096 * pages))

    def clear(self) -> None:
        """Give the room back."""
        self._ballast.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Of 8 MiB; skips where this user may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    disk = Disk(folder)
    if complaint := disk.mount("size=8m"):
        pytest.skip(f"no disk of its own: {complaint}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file, but for locks."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path: path.read_bytes() for path in files}


@pytest.fixture
def answer(tmp_path: Path, overrides: list[str]) -> Callable[..., str]:
    """What ``train.py`` says, of one sentence, when it fails."""

    def run(*more: str) -> str:
        output = tmp_path / "output.txt"
        process = PROCESSES.Process(target=_train_py, args=([*overrides, *more], output))
        process.start()
        process.join(90)
        said = output.read_text()
        assert process.exitcode == 1, said
        assert "Traceback" not in said
        (sentence,) = (line for line in said.splitlines() if line.startswith("train.py: "))
        return sentence

    return run


def _train_py(overrides: list[str], output: Path) -> None:
    """With CIFAR-10 made up, and ranks that start at once."""
    cifar.SPECS["cifar10"] = SPEC
    distributed.START_METHOD = "forkserver"
    torch.set_num_threads(1)
    train_py(overrides, output)


# ---------------------------------------------------------------------------------------------------------- full disks


@pytest.mark.parametrize(("devices", "pages"), [(1, 0), (1, 1), (1, 3), (1, 100), (1, 260), (2, 100)])
def test_a_full_disk_is_said_and_loses_nothing_and_the_run_goes_on_when_there_is_room(
    config, answer, disk, tmp_path, devices, pages
):
    """Full from the first file, or in its config, its metrics, its first or its second checkpoint."""
    earlier = train_quietly(config("scheme=sgd", "recipe.epochs=1", f"paths.runs={disk.folder / 'runs'}"))
    before = contents(earlier.folder)
    cfg = config(EPOCHS, f"devices={devices}", f"paths.runs={disk.folder / 'runs'}")
    more = (EPOCHS, f"devices={devices}", f"paths.runs={disk.folder / 'runs'}")
    disk.leave(pages)
    sentence = answer(*more)
    assert "No space left on device" in sentence
    assert str(disk.folder / "runs") in sentence
    assert contents(earlier.folder) == before
    assert not open_record(cfg).done

    disk.clear()
    undisturbed = config(EPOCHS, f"devices={devices}", f"paths.runs={tmp_path / 'undisturbed'}")
    for own in (cfg, undisturbed):
        on_ranks(train_rank, *[(own, False, 0)] * 2) if devices == 2 else train_quietly(own)
    assert_same_outcome(open_record(cfg), open_record(undisturbed))


MADE_UP = ("dataset=cifar10", "recipe=digits", "dataset.train_images=48", "dataset.test_images=20")


def of_cifar(tmp_path: Path, cache: Path) -> tuple[str, ...]:
    root = write_parquet(tmp_path / "root")
    return (*MADE_UP, f"dataset.root={root}", f"paths.cache={cache}", "recipe.epochs=1")


@pytest.mark.parametrize("pages", [0, 10, 40])
def test_a_disk_that_is_full_while_the_data_cache_is_written_is_said(answer, disk, tmp_path, pages):
    disk.leave(pages)
    sentence = answer(*of_cifar(tmp_path, disk.folder / "cache"))
    assert "No space left on device" in sentence
    assert str(disk.folder / "cache") in sentence
    assert contents(disk.folder / "cache") == {}


# ----------------------------------------------------------------------------------------------- read-only folders


def test_a_record_on_a_read_only_disk_is_said_and_stays_as_it_is(config, answer, disk):
    """Of a run that is new, and of one that is half done."""
    runs = f"paths.runs={disk.folder / 'runs'}"
    half_done = train_quietly(config(EPOCHS, runs))
    (half_done.folder / "summary.json").unlink()
    (half_done.folder / "checkpoint.previous.pt").replace(half_done.checkpoint)
    assert not disk.mount("remount,ro")
    before = contents(disk.folder)
    for more in ((EPOCHS, runs), ("seed=1", runs)):
        sentence = answer(*more)
        assert "Read-only file system" in sentence
        assert str(disk.folder / "runs") in sentence
    assert contents(disk.folder) == before


def test_a_run_that_is_done_on_a_read_only_disk_prints_its_result(config, overrides, command, disk):
    runs = f"paths.runs={disk.folder / 'runs'}"
    record = train_quietly(config(runs))
    assert not disk.mount("remount,ro")
    process, output = command(*overrides, runs)
    process.join(60)
    assert process.exitcode == 0
    assert output.read_text().startswith(f"{record.id}: test error")


def test_a_data_cache_on_a_read_only_disk_is_said(answer, disk, tmp_path):
    assert not disk.mount("remount,ro")
    sentence = answer(*of_cifar(tmp_path, disk.folder / "cache"))
    assert sentence == (
        f"train.py: The cache {disk.folder / 'cache'} cannot be written (Read-only file system): "
        "write paths.cache=<folder>."
    )


# ----------------------------------------------------------------------------------------- two that want the same


def test_of_two_processes_that_prepare_one_data_cache_one_does_the_work_and_the_other_says_that_it_waits(tmp_path):
    write_parquet(tmp_path / "root")
    together = PROCESSES.Barrier(2)
    outputs = [tmp_path / "0.txt", tmp_path / "1.txt"]
    processes = [PROCESSES.Process(target=_prepare, args=(tmp_path, together, output)) for output in outputs]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert (tmp_path / "work.txt").read_text() == "done\n"
    said = [output.read_text() for output in outputs]
    assert sorted(map(bool, said)) == [False, True]
    assert f"Another process fills the cache {tmp_path / 'cache'}" in "".join(said)


def _prepare(folder: Path, together: Any, output: Path) -> None:
    """The cache, with a note of who decodes, which takes a second."""
    sys.stderr = output.open("w", buffering=1)

    def noted(*arguments: Any) -> Any:
        with (folder / "work.txt").open("a") as file:
            file.write("done\n")
        dataset = read(*arguments)
        time.sleep(1)
        return dataset

    read, cifar.read_parquet = cifar.read_parquet, noted
    together.wait(60)
    dataset = load_spec(SPEC, cache=folder / "cache", root=folder / "root", source="parquet")
    assert dataset.digest == EXPECTED.digest


def test_of_two_processes_that_start_one_run_one_trains_it_and_the_other_says_so(config, overrides, tmp_path):
    more = [*overrides, "recipe.epochs=10"]
    outputs = [tmp_path / "0.txt", tmp_path / "1.txt"]
    processes = [PROCESSES.Process(target=_train_py, args=(more, output)) for output in outputs]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    record = open_record(config("recipe.epochs=10"))
    (first, said), (second, also_said) = sorted(
        (process.exitcode, output.read_text()) for process, output in zip(processes, outputs, strict=True)
    )
    assert first == 0
    assert f"{record.id}: test error" in said
    if second == 0:  # the other came when it was done
        assert f"{record.id}: test error" in also_said
    else:
        assert f"train.py: run {record.id} is being trained by another process." in also_said.splitlines()
    undisturbed = train_quietly(config("recipe.epochs=10", f"paths.runs={tmp_path / 'undisturbed'}"))
    assert_same_outcome(record, undisturbed)
