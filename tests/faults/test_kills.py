"""Runs that are killed, SIGKILL, at 200 random moments, as they end: to the bit as if they had not been."""

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
from helpers import drawing, killed, moments_of, train_py_with_kill, train_quietly, train_rank
from omegaconf import DictConfig
from test_resume import assert_same_outcome
from test_sources import EXPECTED, SPEC, assert_same, write_parquet

from rst.data.cifar import load_spec
from rst.experiments.config import InputError
from rst.experiments.record import Record, open_record

pytestmark = pytest.mark.faults

KILLS = int(os.environ.get("RST_KILLS", "200"))
"""At random moments; a tenth of them are of one of two ranks, some of a rank of our launcher, a few of it itself."""

OF_A_RANK, OF_A_LAUNCHED_RANK, OF_A_LAUNCHER = KILLS // 10, KILLS // 16, KILLS // 50
OF_ONE_PROCESS = KILLS - OF_A_RANK - OF_A_LAUNCHED_RANK - OF_A_LAUNCHER
MOST = 4
"""Kills of one run."""

EPOCHS = "recipe.epochs=6"
CASES = {
    "sgd": ("scheme=sgd",),
    "sam": ("scheme=sam",),
    "gnr": ("scheme=gnr",),
    "rst": ("scheme=rst",),
    "grst": ("scheme=grst", "schedule=linear", "seed=1"),
    "asam": ("scheme=grst", "variant=asam"),
    "gsam": ("scheme=rst", "variant=gsam"),
    "looksam": ("scheme=sam", "variant=looksam", "variant.k=3"),
    "esam": ("scheme=rst", "variant=esam"),
    "ssam_f": ("scheme=sam", "variant=ssam_f"),
    "ssam_d": ("scheme=rst", "variant=ssam_d"),
}

done: Counter[str] = Counter()


@pytest.fixture(scope="module", autouse=True)
def _figures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Prints what was done, at the end."""
    begin = time.monotonic()
    yield
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{dict(done)}, {sum(n for what, n in done.items() if 'kills' in what)} kills in all, ", end="")
        print(f"in {time.monotonic() - begin:.0f} s")


@pytest.fixture
def fresh(config: Callable[..., DictConfig], tmp_path: Path) -> Callable[..., DictConfig]:
    """The same run with a folder of its own, a new one each time."""
    folders = iter(tmp_path / f"{number}" for number in range(1000))
    return lambda *more: config(EPOCHS, *more, f"paths.runs={next(folders)}")


def assert_whole(record: Record, expected: Record) -> None:
    """As an undisturbed run to the bit, with no file more."""
    assert_same_outcome(record, expected)
    files, expected_files = ({path.name for path in one.folder.iterdir()} for one in (record, expected))
    assert files <= expected_files | {"checkpoint.previous.pt"}


def share(total: int, cases: dict[str, object], name: str) -> int:
    """Of ``total``, that of one of the cases."""
    place = list(cases).index(name)
    return total * (place + 1) // len(cases) - total * place // len(cases)


def until(kills: int, runs: Callable[[int], int]) -> None:
    """Runs, each killed as often as it returns, up to a number of times, until there are so many kills."""
    for _ in range(10 * kills):
        if kills:
            kills -= runs(min(kills, MOST))
            done["runs"] += 1
    assert not kills


@pytest.mark.parametrize("name", CASES)
def test_a_run_that_is_killed_at_random_moments_ends_as_one_that_never_was(fresh, name):
    """Half by the clock, half before or after a step, an evaluation, a rename or an fsync, or within a write."""
    expected, often = fresh(*CASES[name]), fresh(*CASES[name])
    moments, seconds = moments_of(train_quietly, expected)
    moments_often, _ = moments_of(train_quietly, often, True)
    assert_same_outcome(open_record(often), open_record(expected))
    draw = drawing(name)

    def one_run(most: int) -> int:
        cfg, every_epoch = fresh(*CASES[name]), draw.random() < 0.7
        kills = 0
        for _ in range(most):
            last = draw.randint(1, moments_often if every_epoch else moments)
            when = {"last": last} if draw.random() < 0.5 else {"after": draw.uniform(0, seconds)}
            if not killed(train_quietly, cfg, every_epoch, **when):
                break
            done["kills by the clock" if "after" in when else "kills at a moment"] += 1
            kills += 1
        assert not killed(train_quietly, cfg, every_epoch)
        assert_whole(open_record(cfg), open_record(expected))
        return kills

    until(share(OF_ONE_PROCESS, CASES, name), one_run)


LAST_WRITES = 22
"""Moments from the write of the last checkpoint to the end of that of the summary."""


def test_a_run_that_is_killed_at_any_moment_of_its_last_writes_ends_with_all_its_files(fresh):
    expected = fresh()
    moments, _ = moments_of(train_quietly, expected, True)
    for last in range(moments - LAST_WRITES + 1, moments + 1):
        cfg = fresh()
        assert killed(train_quietly, cfg, True, last=last)
        done["kills in the last writes"] += 1
        assert not killed(train_quietly, cfg, True)
        assert_same_outcome(open_record(cfg), open_record(expected))


# ---------------------------------------------------------------------------------------------------------- two ranks

OF_RANKS = {
    "sgd": ("scheme=sgd",),
    "grst": ("scheme=grst", "seed=1"),
    "looksam": ("scheme=sam", "variant=looksam", "variant.k=3", "recipe.perturbation_batch=8"),
    "ssam_f": ("scheme=rst", "variant=ssam_f"),
}


@pytest.mark.parametrize("name", OF_RANKS)
def test_two_ranks_of_which_one_is_killed_name_it_and_end_as_if_it_had_not_been(fresh, name):
    fresh = partial(fresh, "devices=2", *OF_RANKS[name])
    expected = fresh()
    moments = [count for count, _ in on_ranks(train_rank, *[(expected, True, 0)] * 2)]
    draw = drawing("ranks", name)

    def one_run(most: int) -> int:
        cfg = fresh()
        kills = sum(a_rank_is_killed(cfg, draw, moments) for _ in range(most))
        on_ranks(train_rank, *[(cfg, True, 0)] * 2)
        assert_whole(open_record(cfg), open_record(expected))
        return kills

    until(share(OF_A_RANK, OF_RANKS, name), one_run)


def a_rank_is_killed(cfg: DictConfig, draw: Random, moments: list[int]) -> bool:
    rank = draw.randrange(2)
    lasts = [draw.randint(1, moments[rank]) if rank == own else 0 for own in range(2)]
    with ranks(train_rank, *[(cfg, True, last) for last in lasts]) as answers:
        assert answers[1 - rank].poll(60)
        error = answers[1 - rank].recv()
        try:
            answers[rank].recv()
            return False  # it was done before that moment
        except EOFError:
            done["kills of one of two ranks"] += 1
    if isinstance(error, InputError):
        assert str(error) == (
            f"rank {rank} of 2 has ended or does not answer: the same command goes on from the last checkpoint."
        )
    else:
        assert open_record(cfg).done  # so that the other had nothing left to wait for
    return True


def test_train_py_says_which_rank_was_killed_and_goes_on(fresh, overrides, tmp_path):
    """Half by the clock, from when the ranks begin to look for each other."""
    expected = fresh("devices=2")
    moments, seconds = zip(*on_ranks(train_rank, *[(expected, True, 0)] * 2), strict=True)
    draw = drawing("train.py")

    def train_py(cfg: DictConfig, rank: int, last: int = 0, after: float = 120.0) -> tuple[int | None, str]:
        more = [*overrides, EPOCHS, "devices=2", f"paths.runs={cfg.paths.runs}"]
        output = tmp_path / "output.txt"
        process = PROCESSES.Process(target=train_py_with_kill, args=(more, output, rank, last, after))
        process.start()
        process.join(60)
        return process.exitcode, output.read_text()

    def one_run(most: int) -> int:
        cfg, kills = fresh("devices=2"), 0
        for _ in range(most):
            rank = draw.randrange(2)
            last, after = draw.randint(1, moments[rank]), draw.uniform(0, seconds[rank])
            when: dict[str, Any] = {"last": last} if draw.random() < 0.5 else {"after": after}
            code, said = train_py(cfg, rank, **when)
            if code == 0:
                break
            at = "by the clock" if "after" in when else "at a moment"
            done[f"kills of one rank of the launcher {at}"] += 1
            kills += 1
            assert code == 1
            (sentence,) = re.findall(r"^train\.py: .*", said, re.MULTILINE)
            assert sentence == (
                f"train.py: rank {rank} of 2 was killed by SIGKILL: the same command goes on from the last checkpoint."
            )
            assert "Traceback" not in said
        assert train_py(cfg, 0)[0] == 0
        assert_whole(open_record(cfg), open_record(expected))
        return kills

    until(OF_A_LAUNCHED_RANK, one_run)


def test_a_launcher_that_is_killed_leaves_ranks_that_end_and_a_run_that_goes_on(fresh, overrides, tmp_path):
    expected = fresh("devices=2")
    on_ranks(train_rank, *[(expected, True, 0)] * 2)
    draw = drawing("launcher")

    def one_run(most: int) -> int:
        cfg, kills = fresh("devices=2"), 0
        more = [*overrides, EPOCHS, "devices=2", f"paths.runs={cfg.paths.runs}"]
        record, limit = open_record(cfg), time.monotonic() + 60
        while not record.done:
            process = PROCESSES.Process(target=train_py_with_kill, args=(more, tmp_path / "output.txt", 0, 0, 120.0))
            process.start()
            epochs = draw.randrange(EPOCHS_OF_A_RUN) if kills < most else EPOCHS_OF_A_RUN
            while process.is_alive() and (epochs == EPOCHS_OF_A_RUN or len(record.metrics) < epochs):
                time.sleep(0.02)
            process.kill()
            process.join()
            if process.exitcode == -signal.SIGKILL:
                done["kills of the launcher"] += 1
                kills += 1
            while record.status == "running":  # its ranks outlive it for as long as a checkpoint takes
                assert time.monotonic() < limit
                time.sleep(0.02)
        assert_whole(record, open_record(expected))
        return kills

    until(OF_A_LAUNCHER, one_run)


EPOCHS_OF_A_RUN = 6


# ---------------------------------------------------------------------------------------------------------- the cache


def prepare(folder: Path) -> None:
    load_spec(SPEC, cache=folder / "cache", root=folder / "root", source="parquet")


def test_a_process_killed_while_it_writes_the_data_cache_leaves_none_or_a_whole_one(tmp_path):
    """Before, within and after the write, the fsync and the rename."""
    write_parquet(tmp_path / "count" / "root")
    moments, _ = moments_of(prepare, tmp_path / "count")
    for last in range(max(1, moments - 7), moments + 1):
        folder = tmp_path / str(last)
        write_parquet(folder / "root")
        assert killed(prepare, folder, last=last)
        done["kills while the cache is written"] += 1
        assert_same(load_spec(SPEC, cache=folder / "cache", root=folder / "root", source="parquet"), EXPECTED)
        files = [path.name for path in (folder / "cache").rglob("*") if path.is_file() and path.name != ".lock"]
        assert files == ["cifar10.pt"]
