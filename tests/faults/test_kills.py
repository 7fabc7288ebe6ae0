"""Runs that are killed by SIGKILL, 200 times in all, end bit for bit as runs that were never killed."""

import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
from conftest import PROCESSES, on_ranks, ranks
from made_up_cifar import EXPECTED, assert_same, load_made_up, write_parquet
from stopped_runs import assert_same_outcome

from rst.experiments.errors import InputError
from rst.experiments.runs.record import Record, open_record
from rst.experiments.spec import RunSpec

from .helpers import drawing, killed, moments_of, train_py_with_kill, train_quietly, train_rank

pytestmark = pytest.mark.faults

KILLS = int(os.environ.get("RST_KILLS", "200"))
"""How many kills there are. A tenth of them kill one of two ranks that torchrun starts, a sixteenth one of two ranks
that train.py starts, a fiftieth train.py itself while it has two ranks, and the others a run of one process."""

OF_A_RANK, OF_A_LAUNCHED_RANK, OF_A_LAUNCHER = KILLS // 10, KILLS // 16, KILLS // 50
OF_ONE_PROCESS = KILLS - OF_A_RANK - OF_A_LAUNCHED_RANK - OF_A_LAUNCHER
MOST = 4
"""How often one run is killed at most."""

EPOCHS_OF_A_RUN = 6
EPOCHS = f"recipe.epochs={EPOCHS_OF_A_RUN}"
CASES = {
    "sgd": ("scheme=sgd",),
    "sam": ("scheme=sam",),
    "gnr": ("scheme=gnr",),
    "rst": ("scheme=rst",),
    "grst": ("scheme=grst", "schedule=linear", "seed=1"),
    "asam": ("scheme=grst", "variant=asam"),
    "friendly": ("scheme=rst", "variant=friendly"),
    "gsam": ("scheme=rst", "variant=gsam"),
    "looksam": ("scheme=sam", "variant=looksam", "variant.k=3"),
    "esam": ("scheme=rst", "variant=esam"),
    "ssam_f": ("scheme=sam", "variant=ssam_f"),
    "ssam_d": ("scheme=rst", "variant=ssam_d"),
}

done: Counter[str] = Counter()


@pytest.fixture(scope="module", autouse=True)
def _counts(request: pytest.FixtureRequest) -> Iterator[None]:
    """Print at the end how often what was killed."""
    begin = time.monotonic()
    yield
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{dict(done)}, {sum(n for what, n in done.items() if 'kills' in what)} kills in all, ", end="")
        print(f"in {time.monotonic() - begin:.0f} s")


@pytest.fixture
def fresh(config: Callable[..., RunSpec], tmp_path: Path) -> Callable[..., RunSpec]:
    """The spec of the run of some overrides, each time with a new folder for its record."""
    folders = iter(tmp_path / f"{number}" for number in range(1000))
    return lambda *more: config(EPOCHS, *more, f"paths.runs={next(folders)}")


def assert_whole(record: Record, expected: Record) -> None:
    """Check that a run has the outcome of an undisturbed one, and leaves no other files behind."""
    assert_same_outcome(record, expected)
    files, expected_files = ({path.name for path in one.folder.iterdir()} for one in (record, expected))
    assert files <= expected_files | {"checkpoint.previous.pt"}


def share(total: int, cases: dict[str, object], name: str) -> int:
    """How many of ``total`` kills one of the cases gets, where all cases get about as many."""
    place = list(cases).index(name)
    return total * (place + 1) // len(cases) - total * place // len(cases)


def until(kills: int, run: Callable[[int], int]) -> None:
    """Call ``run`` until there are so many kills. It gets how many it may do at most, and returns how many it did."""
    for _ in range(10 * kills):
        if kills:
            kills -= run(min(kills, MOST))
            done["runs"] += 1
    assert not kills


@pytest.mark.parametrize("name", CASES)
def test_a_run_that_is_killed_at_random_times_ends_as_one_that_never_was(fresh, name):
    """Half of the kills come after a random number of seconds, the others at a random moment (see helpers)."""
    expected, often = fresh(*CASES[name]), fresh(*CASES[name])
    moments, seconds = moments_of(train_quietly, expected)
    moments_often, _ = moments_of(train_quietly, often, True)
    assert_same_outcome(open_record(often), open_record(expected))
    draw = drawing(name)

    def one_run(most: int) -> int:
        spec, every_epoch = fresh(*CASES[name]), draw.random() < 0.7
        kills = 0
        for _ in range(most):
            last = draw.randint(1, moments_often if every_epoch else moments)
            when = {"last": last} if draw.random() < 0.5 else {"after": draw.uniform(0, seconds)}
            if not killed(train_quietly, spec, every_epoch, **when):
                break
            done["kills by the clock" if "after" in when else "kills at a moment"] += 1
            kills += 1
        assert not killed(train_quietly, spec, every_epoch)
        assert_whole(open_record(spec), open_record(expected))
        return kills

    until(share(OF_ONE_PROCESS, CASES, name), one_run)


LAST_WRITES = 22
"""How many moments there are from the write of the last checkpoint to the end of the write of the summary."""


def test_a_run_that_is_killed_at_any_moment_of_its_last_writes_ends_with_all_its_files(fresh):
    expected = fresh()
    moments, _ = moments_of(train_quietly, expected, True)
    for last in range(moments - LAST_WRITES + 1, moments + 1):
        spec = fresh()
        assert killed(train_quietly, spec, True, last=last)
        done["kills in the last writes"] += 1
        assert not killed(train_quietly, spec, True)
        assert_same_outcome(open_record(spec), open_record(expected))


# ---------------------------------------------------------------------------------------------------------- two ranks

OF_RANKS = {
    "sgd": ("scheme=sgd",),
    "grst": ("scheme=grst", "seed=1"),
    "looksam": ("scheme=sam", "variant=looksam", "variant.k=3", "recipe.perturbation_batch=8"),
    "ssam_f": ("scheme=rst", "variant=ssam_f"),
}


@pytest.mark.parametrize("name", OF_RANKS)
def test_if_one_of_two_ranks_is_killed_the_other_names_it_and_the_run_ends_as_one_that_never_was(fresh, name):
    fresh = partial(fresh, "devices=2", *OF_RANKS[name])
    expected = fresh()
    moments = [count for count, _ in on_ranks(train_rank, *[(expected, True, 0)] * 2)]
    draw = drawing("ranks", name)

    def one_run(most: int) -> int:
        spec = fresh()
        kills = sum(a_rank_is_killed(spec, draw, moments) for _ in range(most))
        on_ranks(train_rank, *[(spec, True, 0)] * 2)
        assert_whole(open_record(spec), open_record(expected))
        return kills

    until(share(OF_A_RANK, OF_RANKS, name), one_run)


def a_rank_is_killed(spec: RunSpec, draw: Random, moments: list[int]) -> bool:
    """Kill one of two ranks at a random moment, and check what the other says; whether the rank lived that long."""
    rank = draw.randrange(2)
    lasts = [draw.randint(1, moments[rank]) if rank == own else 0 for own in range(2)]
    with ranks(train_rank, *[(spec, True, last) for last in lasts]) as answers:
        assert answers[1 - rank].poll(60)
        error = answers[1 - rank].recv()
        try:
            answers[rank].recv()
            return False  # It had ended before that moment.
        except EOFError:
            done["kills of one of two ranks"] += 1
    if isinstance(error, InputError):
        assert str(error) == (
            f"rank {rank} of 2 has ended or does not answer: the same command goes on from the last checkpoint."
        )
    else:
        assert open_record(spec).done  # Then the other rank had nothing left to wait for.
    return True


def test_train_py_names_the_rank_that_was_killed_and_the_same_command_goes_on(fresh, overrides, tmp_path):
    """Half of the kills come some seconds after the ranks have begun to look for each other."""
    expected = fresh("devices=2")
    moments, seconds = zip(*on_ranks(train_rank, *[(expected, True, 0)] * 2), strict=True)
    draw = drawing("train.py")

    def train_py(spec: RunSpec, rank: int, last: int = 0, after: float = 120.0) -> tuple[int | None, str]:
        more = [*overrides, EPOCHS, "devices=2", f"paths.runs={spec.paths.runs}"]
        output = tmp_path / "output.txt"
        process = PROCESSES.Process(target=train_py_with_kill, args=(more, output, rank, last, after))
        process.start()
        process.join(60)
        return process.exitcode, output.read_text()

    def one_run(most: int) -> int:
        spec, kills = fresh("devices=2"), 0
        for _ in range(most):
            rank = draw.randrange(2)
            last, after = draw.randint(1, moments[rank]), draw.uniform(0, seconds[rank])
            when: dict[str, Any] = {"last": last} if draw.random() < 0.5 else {"after": after}
            code, said = train_py(spec, rank, **when)
            if code == 0:
                break
            at = "by the clock" if "after" in when else "at a moment"
            done[f"kills of one rank of train.py {at}"] += 1
            kills += 1
            assert code == 1
            (sentence,) = re.findall(r"^train\.py: .*", said, re.MULTILINE)
            assert sentence == (
                f"train.py: rank {rank} of 2 was killed by SIGKILL: the same command goes on from the last checkpoint."
            )
            assert "Traceback" not in said
        assert train_py(spec, 0)[0] == 0
        assert_whole(open_record(spec), open_record(expected))
        return kills

    until(OF_A_LAUNCHED_RANK, one_run)


def test_if_train_py_is_killed_its_ranks_end_too_and_the_same_command_goes_on(fresh, overrides, tmp_path):
    expected = fresh("devices=2")
    on_ranks(train_rank, *[(expected, True, 0)] * 2)
    draw = drawing("launcher")

    def one_run(most: int) -> int:
        spec, kills = fresh("devices=2"), 0
        more = [*overrides, EPOCHS, "devices=2", f"paths.runs={spec.paths.runs}"]
        record, limit = open_record(spec), time.monotonic() + 60
        while not record.done:
            process = PROCESSES.Process(target=train_py_with_kill, args=(more, tmp_path / "output.txt", 0, 0, 120.0))
            process.start()
            epochs = draw.randrange(EPOCHS_OF_A_RUN) if kills < most else EPOCHS_OF_A_RUN
            while process.is_alive() and (epochs == EPOCHS_OF_A_RUN or len(record.metrics) < epochs):
                time.sleep(0.02)
            process.kill()
            process.join()
            if process.exitcode == -signal.SIGKILL:
                done["kills of train.py with two ranks"] += 1
                kills += 1
            while record.status == "running":  # The ranks outlive it for as long as a checkpoint takes.
                assert time.monotonic() < limit
                time.sleep(0.02)
        train_quietly(spec)  # A kill after the summary may have left what only training needs.
        assert_whole(record, open_record(expected))
        return kills

    until(OF_A_LAUNCHER, one_run)


# ------------------------------------------------------------------------------------------------------ the data cache


def prepare(folder: Path) -> None:
    """Fill the cache of the folder from the files in it."""
    load_made_up(folder, folder / "root")


def test_a_process_that_is_killed_while_it_writes_the_data_cache_leaves_a_whole_one_or_none(tmp_path):
    """At each moment before, within and after the write, the fsync and the rename."""
    write_parquet(tmp_path / "count" / "root")
    moments, _ = moments_of(prepare, tmp_path / "count")
    for last in range(max(1, moments - 7), moments + 1):
        folder = tmp_path / str(last)
        write_parquet(folder / "root")
        assert killed(prepare, folder, last=last)
        done["kills while the cache is written"] += 1
        assert_same(load_made_up(folder, folder / "root"), EXPECTED)
        files = [path.name for path in (folder / "cache").rglob("*") if path.is_file() and path.name != ".lock"]
        assert files == ["cifar10.pt"]
