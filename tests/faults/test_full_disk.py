"""Full disks, read-only disks, two processes with one folder: a sentence says what is wrong, and nothing is lost."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PROCESSES, on_ranks, train_py
from made_up_cifar import EXPECTED, MADE_UP, load_made_up, write_parquet
from stopped_runs import assert_same_outcome, whole_checkpoints

from rst.experiments.data import cifar_files
from rst.experiments.runs.record import open_record
from rst.experiments.training import spawn

from .helpers import train_quietly, train_rank

pytestmark = pytest.mark.faults

EPOCHS = "recipe.epochs=3"


class Disk:
    """A disk in memory, which a test may fill or make read-only."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._ballast = folder, folder / "ballast"

    def mount(self, options: str) -> str:
        """Mount it, or mount it anew with other options; the complaint of ``mount``, which is empty on success."""
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.folder)]
        try:
            return subprocess.run(command, capture_output=True, text=True).stderr.strip()
        except FileNotFoundError:
            return "there is no mount"

    def leave(self, pages: int) -> None:
        """Fill it until only so many pages of 4 KiB are free."""
        with self._ballast.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)) == 4096:
                    pass
            except OSError:
                pass
            file.truncate(max(0, file.tell() - 4096 * pages))

    def clear(self) -> None:
        """Free what `leave` has filled."""
        self._ballast.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk of 8 MiB. The test is skipped where this user may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    disk = Disk(folder)
    if complaint := disk.mount("size=8m"):
        pytest.skip(f"a disk in memory cannot be mounted here: {complaint}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def contents(folder: Path) -> dict[Path, bytes]:
    """The content of every file below the folder except locks."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path: path.read_bytes() for path in files}


@pytest.fixture
def answer(tmp_path: Path, overrides: list[str]) -> Callable[..., str]:
    """Run ``train.py``, which must fail with exit status 1; the one sentence that it prints."""

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
    """Run ``train.py`` with the made-up CIFAR-10 in place of the real one, and with ranks that start quickly."""
    cifar_files.KNOWN["cifar10"] = MADE_UP
    spawn.START_METHOD = "forkserver"
    torch.set_num_threads(1)
    train_py(overrides, output)


# ---------------------------------------------------------------------------------------------------------- full disks

FULL = [
    *((1, pages) for pages in (0, 1, 2, 3, 100, 260)),
    (2, 100),
]
"""Numbers of devices, and of free pages: the first file that does not fit is, in this order, the config, starts.jsonl,
the metrics, the first checkpoint (twice), the second checkpoint, and with two devices the first checkpoint."""


@pytest.mark.parametrize(("devices", "pages"), FULL)
def test_a_full_disk_is_named_and_loses_nothing_and_the_run_goes_on_when_there_is_room(
    config, answer, disk, tmp_path, devices, pages
):
    earlier = train_quietly(config("scheme=sgd", "recipe.epochs=1", f"paths.runs={disk.folder / 'runs'}"))
    before = contents(earlier.folder)
    spec = config(EPOCHS, f"devices={devices}", f"paths.runs={disk.folder / 'runs'}")
    more = (EPOCHS, f"devices={devices}", f"paths.runs={disk.folder / 'runs'}")
    disk.leave(pages)
    sentence = answer(*more)
    assert "No space left on device" in sentence
    assert str(disk.folder / "runs") in sentence
    assert contents(earlier.folder) == before
    assert not open_record(spec).done

    disk.clear()
    undisturbed = config(EPOCHS, f"devices={devices}", f"paths.runs={tmp_path / 'undisturbed'}")
    for own in (spec, undisturbed):
        on_ranks(train_rank, *[(own, False, 0)] * 2) if devices == 2 else train_quietly(own)
    assert_same_outcome(open_record(spec), open_record(undisturbed))


MADE_UP_KEYS = ("dataset=cifar10", "recipe=digits", "dataset.train_images=48", "dataset.test_images=20")


def of_cifar(tmp_path: Path, cache: Path) -> tuple[str, ...]:
    """The overrides of a run on the made-up CIFAR-10, whose images are then in the cache."""
    root = write_parquet(tmp_path / "root")
    return (*MADE_UP_KEYS, f"dataset.root={root}", f"paths.cache={cache}", "recipe.epochs=1")


@pytest.mark.parametrize("pages", [0, 10, 40])
def test_a_disk_that_is_full_while_the_data_cache_is_written_is_named(answer, disk, tmp_path, pages):
    disk.leave(pages)
    sentence = answer(*of_cifar(tmp_path, disk.folder / "cache"))
    assert "No space left on device" in sentence
    assert str(disk.folder / "cache") in sentence
    assert contents(disk.folder / "cache") == {}


# ----------------------------------------------------------------------------------------------------- read-only disks


def test_a_read_only_disk_is_named_and_its_records_stay_as_they_are(config, answer, disk):
    """For a run that is half done, and for a new one."""
    runs = f"paths.runs={disk.folder / 'runs'}"
    with whole_checkpoints():
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


def test_a_run_that_is_done_prints_its_result_on_a_read_only_disk_too(config, overrides, command, disk):
    runs = f"paths.runs={disk.folder / 'runs'}"
    record = train_quietly(config(runs))
    assert not disk.mount("remount,ro")
    process, output = command(*overrides, runs)
    process.join(60)
    assert process.exitcode == 0
    assert output.read_text().startswith(f"{record.id} was done before, and force=true trains it anew: test error")


def test_a_data_cache_on_a_read_only_disk_is_named(answer, disk, tmp_path):
    assert not disk.mount("remount,ro")
    sentence = answer(*of_cifar(tmp_path, disk.folder / "cache"))
    assert sentence == (
        f"train.py: The cache {disk.folder / 'cache'} cannot be written (Read-only file system): "
        "write paths.cache=<folder>."
    )


# ------------------------------------------------------------------------------------- two processes with one folder


def test_of_two_processes_that_fill_one_data_cache_one_decodes_and_the_other_says_that_it_waits(tmp_path):
    write_parquet(tmp_path / "root")
    together = PROCESSES.Barrier(2)
    outputs = [tmp_path / "0.txt", tmp_path / "1.txt"]
    processes = [PROCESSES.Process(target=_fill_cache, args=(tmp_path, together, output)) for output in outputs]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert (tmp_path / "work.txt").read_text() == "done\n"
    said = [output.read_text() for output in outputs]
    assert sorted(map(bool, said)) == [False, True]
    assert f"Another process fills the cache {tmp_path / 'cache'}" in "".join(said)


def _fill_cache(folder: Path, together: Any, output: Path) -> None:
    """Fill the cache at the same time as another process. Decoding takes a second and leaves a note in work.txt."""
    sys.stderr = output.open("w", buffering=1)

    def noted(*arguments: Any) -> Any:
        with (folder / "work.txt").open("a") as file:
            file.write("done\n")
        dataset = read(*arguments)
        time.sleep(1)
        return dataset

    read, cifar_files.read_parquet = cifar_files.read_parquet, noted
    together.wait(60)
    assert load_made_up(folder, folder / "root").digest == EXPECTED.digest


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
    if second == 0:  # It started when the other had finished.
        assert f"{record.id}: test error" in also_said
    else:
        assert f"train.py: run {record.id} is being trained by another process." in also_said.splitlines()
    undisturbed = train_quietly(config("recipe.epochs=10", f"paths.runs={tmp_path / 'undisturbed'}"))
    assert_same_outcome(record, undisturbed)
