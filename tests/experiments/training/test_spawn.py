"""Ranks that we start: they stop, fail and end together. And the command lines that start them."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from conftest import ROOT, on_ranks, ranks
from filelock import FileLock
from stopped_runs import assert_same_outcome

from rst.experiments.errors import InputError
from rst.experiments.launch.local import run
from rst.experiments.runs.record import Locked, Record, open_record
from rst.experiments.spec import RunSpec
from rst.experiments.tables.expansion import load_table
from rst.experiments.training import Interrupted, checkpoint, train
from rst.experiments.training import ranks as rank_room
from rst.experiments.training import spawn as spawning
from rst.experiments.training.spawn import spawn

TRAIN = ROOT / "train.py"

quiet_train = partial(train, show_progress=False)

# -------------------------------------------------------------------------------------------------- ranks that we start


@pytest.fixture
def quick_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks that have imported everything before they start."""
    monkeypatch.setattr(spawning, "START_METHOD", "forkserver")


@contextmanager
def a_signal_later(record: Record, number: int, epochs: int) -> Iterator[None]:
    """Send a real signal to this process when the record has so many epochs."""

    def send() -> None:
        while len(record.metrics) < epochs and not ended.wait(0.02):
            pass
        if not ended.is_set():
            os.kill(os.getpid(), number)

    ended = threading.Event()
    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.usefixtures("quick_start")
def test_a_signal_to_the_launcher_stops_all_ranks_with_a_checkpoint_from_which_they_go_on(config, tmp_path):
    more = ("devices=2", "recipe.epochs=20")
    spec = config(*more)
    record = open_record(spec)
    with a_signal_later(record, signal.SIGTERM, 2), pytest.raises(Interrupted, match=r"^stopped at step") as stopped:
        quiet_train(spec)
    assert stopped.value.signal_number == signal.SIGTERM
    assert multiprocessing.active_children() == []
    assert not record.done
    undisturbed = config(*more, f"paths.runs={tmp_path / 'undisturbed'}")
    assert_same_outcome(quiet_train(spec), on_ranks(quiet_train, (undisturbed,), (undisturbed,))[0])


def with_rank_1(action: Callable[..., Any], place: str, spec: RunSpec) -> Record:
    """The run, of which rank 1 replaces a function by the action."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rank_room, "PATIENCE", 1.0)
        if os.environ["RANK"] == "1":
            patch.setattr(place, action)
        return quiet_train(spec)


AFTER_A_STEP = "rst.experiments.training.loop.Progress.step"


def be_killed(*arguments: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def have_a_bug(*arguments: Any) -> None:
    raise TypeError("of the programmer")


def meet_a_damaged_file(*arguments: Any) -> None:
    raise ValueError("cat.JPEG cannot be decoded: copy it again.")


def hang(*arguments: Any) -> None:
    time.sleep(1000)


@pytest.mark.usefixtures("quick_start")
@pytest.mark.parametrize(
    ("action", "place", "error", "words"),
    [
        (
            be_killed,
            AFTER_A_STEP,
            InputError,
            r"^rank 1 of 2 was killed by SIGKILL: the same command goes on from .*\.$",
        ),
        (
            have_a_bug,
            AFTER_A_STEP,
            RuntimeError,
            r"(?s)^rank 1 of 2 failed.\n.*Traceback.*TypeError: of the programmer",
        ),
        (
            meet_a_damaged_file,
            "rst.experiments.data.Loader._batch",
            InputError,
            r"^cat.JPEG cannot be decoded: copy it again\.$",
        ),
    ],
    ids=["killed", "bug", "bad input"],
)
def test_a_rank_that_fails_ends_the_run_with_its_own_error(config, action, place, error, words):
    spec = config("devices=2")
    with pytest.raises(error, match=words):
        spawn(with_rank_1, 2, action, place, spec)
    assert multiprocessing.active_children() == []
    assert not open_record(spec).done


def impatient(action: Callable[..., Any], place: str, spec: RunSpec) -> Record:
    """As `with_rank_1`, where ranks wait for each other for two seconds at most."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rank_room, "TIMEOUT", timedelta(seconds=2))
        return with_rank_1(action, place, spec)


def test_a_rank_that_hangs_is_named_when_the_time_is_over(config):
    arguments = (hang, AFTER_A_STEP, config("devices=2"))
    with ranks(impatient, arguments, arguments) as answers:
        assert answers[0].poll(60)
        error = answers[0].recv()
    assert isinstance(error, InputError)
    assert str(error).startswith("rank 1 of 2 has ended or does not answer: ")


# ---------------------------------------------------------------------------------------------------- the command lines


def torchrun(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *arguments]


def outputs(*commands: list[str]) -> list[tuple[int, str, str]]:
    """Exit code, standard output and standard error of commands that run at the same time."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, env=environment, **pipes) for command in commands]
    return [(process.wait(), *process.communicate()) for process in processes]


@pytest.mark.slow
def test_torchrun_on_one_host_and_on_two_and_our_own_launcher_make_the_same_run(overrides, config, tmp_path):
    more = [*overrides, "recipe.perturbation_batch=16"]
    own, one_host, *two_hosts = (
        [sys.executable, str(TRAIN), *more, "devices=2", f"paths.runs={tmp_path / 'own'}"],
        [*torchrun("--nproc-per-node=2", "--standalone"), str(TRAIN), *more, f"paths.runs={tmp_path / 'one'}"],
        *(
            [
                *torchrun("--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=test"),
                f"--rdzv-endpoint=127.0.0.1:{free_port}",
                *("--local-addr=127.0.0.1", str(TRAIN), *more, f"paths.runs={tmp_path / 'two'}"),
            ]
            for free_port in [_free_port()] * 2
        ),
    )
    found = {}
    for name, commands in {"own": [own], "one": [one_host], "two": two_hosts}.items():
        results = outputs(*commands)
        assert [code for code, *_ in results] == [0] * len(commands), results
        (line,) = [line for _, out, _ in results for line in out.splitlines()]
        (folder,) = (tmp_path / name).iterdir()
        assert line.startswith(f"{folder.name}: test error")
        found[name] = Record(folder)
    assert_same_outcome(found["one"], found["own"])
    assert_same_outcome(found["two"], found["own"])


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.mark.slow
def test_runs_of_a_sweep_on_two_devices_each_side_by_side_are_those_alone(overrides, tmp_path, capfd):
    more = ["devices=2", "max_seeds=1", "recipe.epochs=1", "dataset.train_images=64"]
    planned_runs = load_table("demo", [*overrides, *more]).runs[1:3]
    assert run(planned_runs, workers=2) == []
    assert "Warning" not in capfd.readouterr().err  # Of so few steps, the gate may never open.
    for planned in planned_runs:
        spec = planned.spec.changed(paths={"runs": str(tmp_path / "alone")})
        assert_same_outcome(planned.record, on_ranks(quiet_train, (spec,), (spec,))[0])


@pytest.mark.slow
def test_a_sweep_on_two_devices_goes_on_after_a_run_that_fails_on_its_ranks(overrides, tmp_path):
    command = [sys.executable, str(TRAIN), "-m", *overrides, "devices=2", "optimizer.lr=1e30,0.1", "scheme=sgd"]
    ((code, out, err),) = outputs(command)
    assert code == 1
    (complaint,) = (line for line in err.splitlines() if line.startswith("train.py: "))
    assert "optimizer.lr=1e+30" in complaint
    assert "diverged" in complaint
    assert "Traceback" not in err
    assert "test error" in out
    assert len(list((tmp_path / "runs").glob("*/summary.json"))) == 1


@pytest.mark.slow
def test_bad_input_under_torchrun_is_said_once(overrides):
    for bad in ("dataset.root=/nowhere dataset=cifar10", "recipe.rho=-1", "scheme=nothing"):
        command = [*torchrun("--nproc-per-node=2", "--standalone"), str(TRAIN), *overrides, *bad.split()]
        ((code, _, err),) = outputs(command)
        assert code == 1
        assert len([line for line in err.splitlines() if line.startswith("train.py: ")]) == 1, err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGKILL])
def test_ctrl_c_or_a_signal_to_our_launcher_stops_its_ranks_with_a_checkpoint(overrides, config, tmp_path, number):
    """SIGINT goes to all processes at once, as from a terminal; SIGKILL leaves the ranks to find out by themselves."""
    more = ("devices=2", "recipe.epochs=100")
    record = open_record(config(*more))
    command = [sys.executable, str(TRAIN), *overrides, *more]
    errors = (tmp_path / "errors").open("w+")
    process = subprocess.Popen(
        command, stderr=errors, start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    while len(record.metrics) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    assert process.wait(60) == (-number if number == signal.SIGKILL else 128 + number)
    with FileLock(record.folder / ".lock", timeout=60):  # The first rank holds it until it ends.
        pass
    assert checkpoint.load(record.checkpoint)["counters"]["step"] >= 3 * len(record.metrics)
    assert not record.done
    errors.seek(0)
    said = errors.read()
    assert "Traceback" not in said
    if number != signal.SIGKILL:
        (sentence,) = (line for line in said.splitlines() if line.startswith("train.py: "))
        assert sentence.startswith("train.py: stopped at step ")


def test_ranks_whose_run_another_process_trains_say_so_as_one_process_does(config, tmp_path):
    spec = config("devices=2", f"paths.runs={tmp_path}")
    record = open_record(spec)
    record.folder.mkdir(parents=True)
    with FileLock(record.folder / ".lock"), pytest.raises(Locked, match="is being trained by another process"):
        train(spec, show_progress=False)
