"""Small real runs: specs on the embedded digits whose records are in a folder of the test."""

import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import settings

from rst.experiments.compose import compose
from rst.experiments.spec import RunSpec

ROOT = Path(__file__).parents[1]
PROCESSES = multiprocessing.get_context("forkserver")
# Imported once, for all processes of a session of tests.
PROCESSES.set_forkserver_preload(["rst.experiments.training", "rst.experiments.models", "sklearn.datasets"])


# How long an example takes says how busy the machine is, and nothing of the code.
settings.register_profile("without deadline", deadline=None)
settings.load_profile("without deadline")

# A shell starts background commands with SIGINT ignored, and all processes of the tests would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def overrides(tmp_path: Path) -> list[str]:
    """The command line of a run of 2 epochs of 3 steps, each of 2 perturbations: about a third of a second."""
    small = {"train_images": 100, "test_images": 40}
    recipe = {"epochs": 2, "batch_size": 32, "perturbation_batch": 16}
    return [
        *("dataset=digits", "model=wrn10_1", "device=cpu", "wandb.mode=disabled"),
        *(f"dataset.{key}={value}" for key, value in small.items()),
        *(f"recipe.{key}={value}" for key, value in recipe.items()),
        *(f"paths.{key}={tmp_path / key}" for key in ("cache", "runs")),
    ]


@pytest.fixture
def config(overrides: list[str]) -> Callable[..., RunSpec]:
    """The spec of the run of `overrides`; further overrides win."""
    return lambda *more: compose([*overrides, *more])


@pytest.fixture
def group_of_one() -> Iterator[None]:
    """A gloo group of this process alone, for a `DistributedDataParallel` wrapper without a second rank."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def real_data() -> Path:
    """The folder with CIFAR that RST_DATA names. The test is skipped where there is none: users need not have it."""
    folder = Path(os.environ.get("RST_DATA") or "/-")
    if not folder.is_dir():
        pytest.skip("RST_DATA names no folder with CIFAR")
    return folder


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., tuple[BaseProcess, Path]]:
    """Start ``python train.py *overrides`` in a process of its own; the process, and the file of what it prints."""

    def start(*overrides: str) -> tuple[BaseProcess, Path]:
        output = tmp_path / "output.txt"
        process = PROCESSES.Process(target=train_py, args=(overrides, output))
        process.start()
        return process, output

    return start


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """Run ``python scripts/<name>.py *words`` in this process; its exit status."""

    def run(name: str, *words: object) -> int:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / "scripts" / f"{name}.py"), run_name="__main__")
        return int(stop.value.code or 0)

    handler = signal.getsignal(signal.SIGINT)
    yield run
    signal.signal(signal.SIGINT, handler)


def train_py(overrides: list[str], output: Path) -> None:
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["train.py", *overrides]
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


@contextmanager
def ranks(function: Callable[..., Any], *arguments_of_ranks: tuple) -> Iterator[list[Connection]]:
    """Processes as ``torchrun`` starts them, a rank for each tuple of arguments; of each, what it returns or raises."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port, "TORCHELASTIC_USE_AGENT_STORE": True}
    environment |= {"WORLD_SIZE": len(arguments_of_ranks), "LOCAL_WORLD_SIZE": len(arguments_of_ranks)}
    processes, answers = [], []
    for rank, arguments in enumerate(arguments_of_ranks):
        answer, end = PROCESSES.Pipe(duplex=False)
        own = {"RANK": rank, "LOCAL_RANK": rank, "TORCHELASTIC_RESTART_COUNT": 0}
        process = PROCESSES.Process(target=_rank, args=(end, environment | own, function, arguments), daemon=True)
        process.start()
        end.close()
        processes.append(process)
        answers.append(answer)
    try:
        yield answers
    finally:
        for process in processes:
            process.kill()
            process.join()


def _rank(answer: Connection, environment: dict[str, Any], function: Callable[..., Any], arguments: tuple) -> None:
    os.environ |= {name: str(value) for name, value in environment.items()}
    torch.set_num_threads(1)
    try:
        answer.send(function(*arguments))
    except Exception as error:
        answer.send(error)


def on_ranks(function: Callable[..., Any], *arguments_of_ranks: tuple) -> list[Any]:
    """What each of the `ranks` returned or raised."""
    with ranks(function, *arguments_of_ranks) as answers:
        return [answer.recv() for answer in answers]
