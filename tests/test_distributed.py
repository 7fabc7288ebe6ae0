"""One run on several ranks (gloo) is the run of one device, and ends, stops and fails as one."""

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
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, on_ranks, ranks
from filelock import FileLock
from omegaconf import DictConfig
from test_resume import a_signal, assert_same_outcome, in_sessions
from torch import Tensor, nn

from rst.experiments.config import InputError
from rst.experiments.record import Record, open_record
from rst.experiments.sweep import load_table
from rst.training import Interrupted, checkpoint, distributed, loop, run, train
from rst.training.distributed import joined, launch
from rst.training.evaluation import evaluate

TRAIN = ROOT / "train.py"

quiet_train = partial(train, show_progress=False)


def train_in_double(cfg: DictConfig) -> Record:
    """The run with weights in double precision, so that rounding does not hide a difference."""

    def build(*arguments: Any) -> nn.Module:
        model = build_model(*arguments).double()
        model.register_forward_pre_hook(lambda module, inputs: (inputs[0].double(),))
        return model

    build_model = loop.build_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "build_model", build)
        return quiet_train(cfg)


def trained(config: Callable[..., DictConfig], folder: Path, devices: int, *more: str) -> Record:
    """The record of a run on so many ranks."""
    cfg = config(*more, f"devices={devices}", f"paths.runs={folder / str(devices)}")
    record = on_ranks(train_in_double, *[(cfg,)] * devices)[0] if devices > 1 else train_in_double(cfg)
    assert isinstance(record, Record), record
    return record


# --------------------------------------------------------------------------------------- ranks as micro-batches


IMAGES = ("dataset=cifar10", "dataset.source=digits", "scale=smoke", "dataset.train_images=48", "recipe.batch_size=16")
EQUAL = {
    "SGD": ("scheme=sgd",),
    "G-RST": ("scheme=grst", "seed=2"),
    "ASAM": ("scheme=sam", "variant=asam"),
    "GSAM": ("scheme=sam", "variant=gsam"),
    "LookSAM": ("scheme=sam", "variant=looksam", "variant.k=2"),
    "ESAM": ("scheme=sam", "variant=esam"),
    "dropout, mixup, label noise, validation images": (
        *IMAGES,
        *("model=vgg16_bn", "augmentation=mixup", "dataset.label_noise=0.2", "dataset.validation=7"),
        *("dataset.train_images=39", "scheme=sam"),
    ),
    "cutout, an odd number of test images": ("augmentation=cutout", "augmentation.cutout=3", "dataset.test_images=41"),
}


@pytest.mark.parametrize("name", EQUAL)
def test_two_ranks_of_two_micro_batches_are_the_run_of_four_on_one_device(config, tmp_path, name):
    """To rounding: weights, buffers, all that is measured of the losses; the counts exactly."""
    size = 4 if "vgg" in str(EQUAL[name]) else 8
    more = (*EQUAL[name], f"recipe.perturbation_batch={size}", "optimizer.lr=0.02")
    assert_equal_runs(*(trained(config, tmp_path, devices, *more) for devices in (1, 2)))


def test_four_ranks_of_one_micro_batch_are_the_run_of_four_on_one_device(config, tmp_path):
    more = ("recipe.perturbation_batch=8", "optimizer.lr=0.02", "scheme=sam")
    assert_equal_runs(*(trained(config, tmp_path, devices, *more) for devices in (1, 4)))


def assert_equal_runs(one: Record, several: Record) -> None:
    assert one.id == several.id
    models = [checkpoint.load(record.checkpoint)["model"] for record in (several, one)]
    torch.testing.assert_close(*models, rtol=1e-5, atol=1e-7)
    for line, expected in zip(several.metrics, one.metrics, strict=True):
        del line["train_seconds"], expected["train_seconds"]
        assert line == {k: v if v is None else pytest.approx(v, rel=1e-6) for k, v in expected.items()}


def test_it_matters_that_the_ranks_perturb_by_their_own_gradients(config, tmp_path):
    """So that the tests above can fail: another number of perturbations a step is another run."""
    four, two = (
        trained(config, tmp_path / str(size), 1, "scheme=sam", f"recipe.perturbation_batch={size}") for size in (8, 16)
    )
    weights = [checkpoint.load(record.checkpoint)["model"]["head.weight"] for record in (four, two)]
    assert not torch.allclose(*weights, rtol=1e-3)


# ------------------------------------------------------------------------------------------------- evaluation


class Network(nn.Module):
    """BatchNorm before a linear layer, its statistics other ones on each rank."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.head = nn.BatchNorm1d(8), nn.Linear(8, 100)
        torch.manual_seed(seed)
        self.norm(torch.randn(50, 8) * 3 + 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x))


def examples(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, 8, generator=generator), torch.randint(100, (count,), generator=generator)


COUNTS = (1, 2, 3, 7, 20)


def scores_on_a_rank() -> tuple[list[dict[str, float]], bool]:
    """The scores of some images of which this rank has its share, and whether its buffers are as before."""
    with joined(2) as world:
        model = Network(world.rank)
        before = [buffer.clone() for buffer in model.buffers()]
        shares = [[part[world.rank :: 2] for part in examples(count)] for count in COUNTS]
        batches = [list(zip(x.split(3), y.split(3), strict=True)) if len(x) else [] for x, y in shares]
        scores = [evaluate(model, of_one, 100, world) for of_one in batches]
        return scores, all(map(torch.equal, model.buffers(), before))


def test_scores_are_exact_over_ranks_whatever_the_remainder_with_the_mean_of_their_buffers():
    (scores, kept), (others, others_kept) = on_ranks(scores_on_a_rank, (), ())
    assert kept
    assert others_kept
    assert scores == others
    mean, other = Network(0), Network(1)
    for buffer, theirs in zip(mean.buffers(), other.buffers(), strict=True):
        buffer.copy_((buffer + theirs) / 2)
    mean.eval()
    for count, of_count in zip(COUNTS, scores, strict=True):
        x, y = examples(count)
        with torch.no_grad():
            logits = mean(x)
        places = (logits > logits.gather(1, y[:, None])).sum(1)
        assert of_count["error"] == pytest.approx(100 * (places >= 1).double().mean().item(), abs=1e-12)
        assert of_count["top5_error"] == pytest.approx(100 * (places >= 5).double().mean().item(), abs=1e-12)
        assert of_count["loss"] == pytest.approx(nn.functional.cross_entropy(logits, y).item(), rel=1e-5)


# ------------------------------------------------------------------------------------- stopping and going on


def stopped_on_rank_1(rank: int, cfg: DictConfig, steps: int, number: int) -> Record:
    """The run, with a signal to rank 1 after so many steps of each session."""
    return in_sessions(cfg, steps if rank == 1 else 10**9, number)


def test_ranks_that_stop_after_a_signal_to_one_of_them_end_as_if_they_never_had(config, tmp_path):
    """With LookSAM, which has a state of each rank and micro-batch."""
    more = ("devices=2", "scheme=sam", "variant=looksam", "recipe.perturbation_batch=8")
    cfg, undisturbed = (config(*more, f"paths.runs={tmp_path / name}") for name in ("a", "b"))
    records = on_ranks(stopped_on_rank_1, (0, cfg, 1, signal.SIGUSR1), (1, cfg, 1, signal.SIGUSR1))
    assert isinstance(records[0], Record), records
    expected = on_ranks(quiet_train, (undisturbed,), (undisturbed,))[0]
    assert_same_outcome(records[0], expected)


def test_another_number_of_devices_is_refused_and_named(config):
    cfg = config("devices=2", "recipe.epochs=3")
    stops = on_ranks(stopped_once, (0, cfg), (1, cfg))
    assert [type(stop) for stop in stops] == [Interrupted, Interrupted]
    path = open_record(cfg).checkpoint
    before = path.read_bytes()
    with pytest.raises(InputError, match=rf"^{path} is of devices=2, .* not of devices=1: write devices=2, or delete"):
        quiet_train(config("recipe.epochs=3"))
    assert path.read_bytes() == before


def stopped_once(rank: int, cfg: DictConfig) -> None:
    with a_signal(signal.SIGTERM, "step", 2 if rank == 0 else 10**9):
        quiet_train(cfg)


# ------------------------------------------------------------------------------------------- ranks that we start


@pytest.fixture
def quick_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks that have imported everything before they start."""
    monkeypatch.setattr(distributed, "START_METHOD", "forkserver")


@contextmanager
def a_signal_later(record: Record, number: int, epochs: int) -> Iterator[None]:
    """A real signal to this process, when the record has so many epochs."""

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
    cfg = config(*more)
    record = open_record(cfg)
    with a_signal_later(record, signal.SIGTERM, 2), pytest.raises(Interrupted, match=r"^stopped at step") as stopped:
        quiet_train(cfg)
    assert stopped.value.signal_number == signal.SIGTERM
    assert multiprocessing.active_children() == []
    assert not record.done
    undisturbed = config(*more, f"paths.runs={tmp_path / 'undisturbed'}")
    assert_same_outcome(quiet_train(cfg), on_ranks(quiet_train, (undisturbed,), (undisturbed,))[0])


def with_rank_1(action: Callable[..., Any], place: str, cfg: DictConfig) -> Record:
    """The run; rank 1 does something else in the place of a part of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "PATIENCE", 1.0)
        if os.environ["RANK"] == "1":
            patch.setattr(place, action)
        return quiet_train(cfg)


AFTER_A_STEP = "rst.training.loop.Progress.step"


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
        (meet_a_damaged_file, "rst.data.Loader._batch", InputError, r"^cat.JPEG cannot be decoded: copy it again\.$"),
    ],
)
def test_a_rank_that_fails_ends_the_run_with_its_last_words(config, action, place, error, words):
    cfg = config("devices=2")
    with pytest.raises(error, match=words):
        launch(with_rank_1, 2, action, place, cfg)
    assert multiprocessing.active_children() == []
    assert not open_record(cfg).done


def impatient(action: Callable[..., Any], place: str, cfg: DictConfig) -> Record:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "TIMEOUT", timedelta(seconds=2))
        return with_rank_1(action, place, cfg)


def test_a_rank_that_hangs_is_named_when_the_time_is_over(config):
    arguments = (hang, AFTER_A_STEP, config("devices=2"))
    with ranks(impatient, arguments, arguments) as answers:
        assert answers[0].poll(60)
        error = answers[0].recv()
    assert isinstance(error, InputError)
    assert str(error).startswith("rank 1 of 2 has ended or does not answer: ")


def test_a_number_of_devices_that_is_not_that_of_the_ranks_is_refused(config):
    cfg = config("devices=4", "recipe.perturbation_batch=8")
    errors = on_ranks(quiet_train, (cfg,), (cfg,))
    assert {str(error) for error in errors} == {
        "devices=4, but torch's launcher has started 2 ranks: leave devices out."
    }


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("devices=3", "devices=3 do not divide the 2 perturbations .*: take devices=1 or 2, or a smaller recipe.pert"),
        (
            "devices=2 recipe.perturbation_batch=null",
            "devices=2 do not divide the 1 perturbations .*: take devices=1, or",
        ),
        ("devices=0", "devices=0: write an integer from 1"),
    ],
)
def test_devices_that_do_not_get_whole_perturbations_are_refused(config, more, words):
    with pytest.raises(InputError, match=f"^{words}"):
        config(*more.split())


# ----------------------------------------------------------------------------------------------- the command lines


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
    jobs = load_table("demo", [*overrides, *more]).jobs[1:3]
    assert run(jobs, workers=2) == []
    assert "Warning" not in capfd.readouterr().err  # that its gate, of so few steps, never opens
    for job in jobs:
        cfg = job.cfg.copy()
        cfg.paths.runs = str(tmp_path / "alone")
        assert_same_outcome(job.record, on_ranks(quiet_train, (cfg,), (cfg,))[0])


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
    with FileLock(record.folder / ".lock", timeout=60):  # the first rank's
        pass
    assert checkpoint.load(record.checkpoint)["step"] >= 3 * len(record.metrics)
    assert not record.done
    errors.seek(0)
    said = errors.read()
    assert "Traceback" not in said
    if number != signal.SIGKILL:
        (sentence,) = (line for line in said.splitlines() if line.startswith("train.py: "))
        assert sentence.startswith("train.py: stopped at step ")
