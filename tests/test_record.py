"""The run record: what its id stands for, what it holds, and that nothing in it is lost, mixed up or half written."""

import json
import pickle
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

import rst
from rst.data import load
from rst.experiments.config import CONFIGS, InputError, load_config, schedule_of
from rst.experiments.identity import ADDED_LATER, run_id
from rst.experiments.record import Record, open_record, write_atomically
from rst.training import checkpoint, loop, train

# What the id is a function of

GRST = load_config(["dataset=cifar10", "model=wrn10_1", "scheme=grst", "schedule.p=0.25"])


def changed(cfg: DictConfig, key: str, value: Any) -> DictConfig:
    cfg = cfg.copy()
    OmegaConf.update(cfg, key, value, force_add=True)
    return cfg


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, value


def other(value: Any) -> Any:
    """A value unlike this one, of its type."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case list():
            return [*value, 1]
        case None:
            return 2
    return {"cifar10": "cifar100", "auto": 3.0}.get(value, f"{value}x")


NOT_IN_THE_ID = {
    *("scheme.name", "device", "devices", "channels_last", "compile", "deterministic", "scale"),
    *("evaluate", "evaluate_every", "dataset.root", "dataset.source", "paths.data", "paths.cache", "paths.runs"),
    *("wandb.mode", "wandb.project", "wandb.group", "wandb.job_type", "max_seeds", "datasets"),
    *(f"slurm.{key}" for key in OmegaConf.load(CONFIGS / "train.yaml").slurm),
    "recipe.rho",  # which counts as variant.rho
}


def test_the_id_depends_on_every_key_but_those_that_do_not_change_the_result():
    keys = dict(leaves(OmegaConf.to_container(GRST)))
    tried = {key: other(value) for key, value in keys.items() if key not in ("schedule._target_", "schedule.p")}
    tried["dataset.source"] = "parquet"
    same = {key for key, value in tried.items() if run_id(changed(GRST, key, value)) == run_id(GRST)}
    assert same == NOT_IN_THE_ID & keys.keys()


def test_the_id_depends_on_p_of_every_step():
    ids = {
        run_id(load_config(["scheme=rst", *schedule]))
        for schedule in (
            ["schedule.p=0.25"],
            ["schedule.p=0.5"],
            ["schedule=linear"],  # the same mean
            ["schedule=linear", "schedule.m=0.25"],
            ["schedule=cosine_up"],
        )
    }
    assert len(ids) == 5


@pytest.mark.parametrize(
    "twins",
    [
        (["scheme=sam"], ["scheme=rst", "schedule.p=1"], ["scheme=grst", "schedule.p=1.0", "scheme.gamma_ratio=1"]),
        (["scheme=sam"], ["scheme=grst", "schedule=always"], ["scheme=gnr", "scheme.gamma_ratio=1.0"]),
        (["scheme=rst"], ["scheme=grst", "scheme.gamma_ratio=1"]),
        (
            ["scheme=rst"],
            ["scheme=rst", "schedule=piecewise", "schedule.a=0.5"],
            ["scheme=rst", "schedule=linear_through", "schedule.b=0.5"],
        ),
        (
            ["scheme=rst", "schedule=tail", "schedule.fraction=0.3"],
            ["scheme=rst", "schedule=piecewise", "schedule.a=0", "schedule.b=0.7"],
        ),
        (["scheme=grst"], ["scheme=grst", "scheme.gamma_ratio=2"], ["scheme=grst", "scheme.gamma_ratio=2.0"]),
        (["scheme=grst", "schedule.p=0.3"], ["scheme=grst", "schedule.p=0.3", "scheme.gamma_ratio=3.33333333333"]),
        (["scheme=sam"], ["scheme=sam", "scheme.normalise_clean=true"]),  # (1 - c) g is zero
        (["scheme=sgd"], ["scheme=rst", "schedule.p=0"], ["scheme=rst", "schedule=never"]),
        (["scheme=sgd"], ["scheme=sgd", "recipe.rho=0.5"], ["scheme=sgd", "variant.rho=7"]),
        (["scheme=sgd"], ["scheme=sgd", "scheme.gamma_ratio=0.3"], ["scheme=sgd", "scheme.normalise_clean=true"]),
        (["scheme=sgd"], ["scheme=rst", "schedule=tail", "schedule.fraction=0"]),
        (["scheme=sam"], ["scheme=rst", "schedule=tail", "schedule.fraction=1"]),
        (["scheme=sam", "variant.rho=0.3"], ["scheme=sam", "recipe.rho=0.3"]),
        (["recipe.warmup_epochs=2"], ["recipe.warmup_epochs=2.0"]),
        ([], ["device=cpu", "compile=true", "channels_last=true", "dataset.root=elsewhere", "dataset.source=parquet"]),
    ],
    ids=lambda twins: " = ".join(" ".join(command) or "default" for command in twins),
)
def test_equal_runs_have_one_id_however_they_are_written(twins):
    assert len({run_id(load_config(overrides)) for overrides in twins}) == 1


@settings(deadline=None, max_examples=30)
@given(
    value=st.integers(0, 1000), key=st.sampled_from(["optimizer.lr", "recipe.l2", "variant.rho", "scheme.gamma_ratio"])
)
def test_an_integer_and_the_same_number_with_a_point_are_one_value(value, key):
    assert run_id(changed(GRST, key, value)) == run_id(changed(GRST, key, float(value)))


@settings(deadline=None, max_examples=30)
@given(a=st.floats(0, 10), b=st.floats(0, 10))
def test_numbers_that_differ_have_ids_that_differ(a, b):
    ids = [run_id(changed(GRST, "variant.rho", value)) for value in (a, b)]
    assert (ids[0] == ids[1]) == (a == b)


def test_the_embedded_digits_are_never_taken_for_the_data_set_whose_shape_they_have():
    real = {run_id(changed(GRST, "dataset.source", source)) for source in ("auto", "parquet", "torchvision")}
    assert len(real) == 1
    assert run_id(changed(GRST, "dataset.source", "digits")) not in real


def test_the_id_begins_with_what_a_person_looks_for():
    assert run_id(GRST).startswith("cifar10-wrn10_1-constant-p0.25-c4-s0-")
    assert run_id(load_config(["scheme=sgd", "seed=3"])).startswith("cifar10-resnet18-constant-p0")


@pytest.mark.parametrize("scheme", ["sgd", "grst"])
@pytest.mark.parametrize("default", [0.5, None])
@pytest.mark.parametrize(
    ("key", "in_the_id"), [("recipe.added", "recipe.added"), ("variant.added", "method.variant.added")]
)
def test_a_key_added_later_enters_the_id_only_where_it_differs_from_its_default(
    monkeypatch, scheme, default, key, in_the_id
):
    cfg = load_config([f"scheme={scheme}", "model=wrn10_1"])
    old = run_id(cfg)
    monkeypatch.setitem(ADDED_LATER, in_the_id, default)
    assert run_id(cfg) == old
    assert run_id(changed(cfg, key, default)) == old
    at_p_0 = scheme == "sgd" and key == "variant.added"  # where the variant is not in the id
    assert (run_id(changed(cfg, key, 0.75)) == old) == at_p_0


# What a record holds


@pytest.fixture
def done(config: Callable[..., DictConfig]) -> Record:
    return train(config("seed=4"), show_progress=False)


def test_the_config_is_kept_whole(config, done):
    assert done.config == config("seed=4")
    assert done.id == run_id(done.config)


def test_the_environment_says_what_the_run_ran_on(done):
    environment = json.loads((done.folder / "environment.json").read_text())
    assert environment.keys() >= {"git_commit", "python", "torch", "torchvision", "timm", "rst-training"}
    assert torch.__version__.startswith(environment["torch"])
    assert environment["device"] == "cpu"
    assert environment["threads"] == torch.get_num_threads()
    digits = load("digits", cache=done.folder, image_size=8, channels=1)
    assert environment["data_digest"] == digits.digest


def test_the_metrics_are_one_line_an_epoch(done):
    assert [line["epoch"] for line in done.metrics] == [0, 1]
    assert [line["step"] for line in done.metrics] == [3, 6]
    for line in done.metrics:
        assert line.keys() >= {"train_loss", "train_error", "clean_loss", "perturbed_loss", "loss_gap", "lr", "p"}
        assert line.keys() >= {"test_error", "test_loss", "sharp_steps", "propagations", "train_seconds"}


def test_the_summary_has_the_keys_that_tables_are_made_of(done):
    assert done.summary.keys() >= {
        *("test_error", "best_test_error", "train_seconds", "total_steps", "sharp_steps", "propagations"),
        *("extra_propagations_expected", "extra_propagations_realised", "images_per_second", "peak_memory_bytes"),
        *("epochs", "seed"),
    }
    assert (done.summary["total_steps"], done.summary["epochs"], done.summary["seed"]) == (6, 2, 4)
    assert done.summary["test_error"] == done.metrics[-1]["test_error"]
    assert done.summary["best_test_error"] == min(line["test_error"] for line in done.metrics)
    assert "top5_error" not in done.summary


def test_the_top_5_error_is_there_from_100_classes_on(config):
    cfg = config("dataset=cifar100", "dataset.source=digits", "recipe.epochs=1", "seed=1")
    summary = train(cfg, show_progress=False).summary
    assert 0 <= summary["top5_error"] <= summary["test_error"]


@pytest.mark.parametrize("scheme", ["sgd", "sam", "rst", "grst"])
@pytest.mark.parametrize("parts", [1, 2])
def test_sharp_steps_and_propagations_are_those_of_the_gate_and_those_counted(config, scheme, parts):
    cfg = config(f"scheme={scheme}", "seed=2", f"recipe.perturbation_batch={32 // parts}")
    gate = rst.RST(torch.nn.Linear(1, 1), 0.1, schedule_of(cfg), total_steps=6, seed=2).gate
    images = 0

    def count(module: torch.nn.Module, inputs: tuple, output: object) -> None:
        nonlocal images
        if isinstance(module, rst.models.WideResNet) and module.training:
            images += len(inputs[0])

    hook = torch.nn.modules.module.register_module_forward_hook(count)
    try:
        summary = train(cfg, show_progress=False).summary
    finally:
        hook.remove()
    sharp = int(gate.sum())
    assert summary["sharp_steps"] == sharp
    assert summary["propagations"] == 6 + sharp == (images - 32 / parts) / 32  # but for the pass before the clock
    assert summary["extra_propagations_realised"] == pytest.approx(sharp / 6)
    assert summary["extra_propagations_expected"] == schedule_of(cfg).mean(6)


def test_the_loss_gap_of_a_sharp_step_is_perturbed_minus_clean_loss(config):
    for line in train(config("scheme=sam"), show_progress=False).metrics:
        assert line["loss_gap"] == pytest.approx(line["perturbed_loss"] - line["clean_loss"])
        assert line["clean_loss"] == pytest.approx(line["train_loss"], rel=1e-5)  # every step is sharp
        assert line["loss_gap"] > 0
    for line in train(config("scheme=sgd"), show_progress=False).metrics:
        assert line["clean_loss"] is line["perturbed_loss"] is line["loss_gap"] is None


def test_evaluation_is_off_the_clock(config, monkeypatch):
    evaluate = loop.evaluate
    monkeypatch.setattr(loop, "evaluate", lambda *arguments: time.sleep(0.5) or evaluate(*arguments))
    begin = time.perf_counter()
    seconds = train(config(), show_progress=False).summary["train_seconds"]
    assert 0 < seconds <= time.perf_counter() - begin - 2 * 0.5


def test_an_epoch_that_was_not_evaluated_has_no_test_error(config):
    metrics = train(config("recipe.epochs=5", "evaluate_every=2"), show_progress=False).metrics
    assert [line.get("test_error") is not None for line in metrics] == [False, True, False, True, True]


# What can go wrong


@pytest.fixture
def unfinished(config: Callable[..., DictConfig]) -> Record:
    """A run with one checkpoint, whose summary is still to be written."""
    record = train(config(), show_progress=False)
    (record.folder / "summary.json").unlink()
    (record.folder / "checkpoint.previous.pt").unlink()
    return record


def contents(record: Record) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in record.folder.iterdir()}


def test_a_second_process_on_one_run_is_refused(overrides, config, command, unfinished):
    with unfinished.training(config()):
        before = contents(unfinished)
        process, output = command(*overrides)
        process.join(timeout=60)
        assert process.exitcode == 1
        assert output.read_text() == f"train.py: run {unfinished.id} is being trained by another process.\n"
        assert contents(unfinished) == before
    train(config(), show_progress=False)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no checkpoint", b"\x80\x02]."])
def test_a_file_that_is_no_checkpoint_is_refused_in_one_sentence(config, unfinished, content):
    unfinished.checkpoint.write_bytes(content)
    before = contents(unfinished)
    with pytest.raises(InputError, match=rf"^{unfinished.checkpoint} is not a checkpoint of this project.*\.$"):
        train(config(), show_progress=False)
    assert contents(unfinished) == before


@settings(deadline=None, max_examples=20)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_checkpoint_that_was_cut_off_is_refused(checkpoint_file, share):
    path, content = checkpoint_file
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match="is damaged"):
        checkpoint.load(path)


@pytest.fixture(scope="module")
def checkpoint_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    path = tmp_path_factory.mktemp("checkpoint") / "checkpoint.pt"
    checkpoint.save(path, {"id": "a", "config": "", "model": {"weight": torch.ones(1000)}})
    return path, path.read_bytes()


class Code:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", [torch.save, lambda state, path: path.write_bytes(pickle.dumps(state, protocol=2))])
def test_code_in_a_checkpoint_is_not_run(config, unfinished, tmp_path, save):
    trace = tmp_path / "trace"
    save({"id": unfinished.id, "config": "", "model": {}, "code": Code(trace)}, unfinished.checkpoint)
    with pytest.raises(InputError, match="is not a checkpoint of this project"):
        train(config(), show_progress=False)
    assert not trace.exists()
    torch.load(unfinished.checkpoint, weights_only=False) if save is torch.save else pickle.loads(
        unfinished.checkpoint.read_bytes()
    )
    assert trace.exists()  # so the code was there


def test_a_checkpoint_of_another_run_is_refused(config, unfinished, done):
    unfinished.checkpoint.write_bytes(done.checkpoint.read_bytes())
    before = contents(unfinished)
    with pytest.raises(InputError, match=f"{unfinished.checkpoint} belongs to another run, {done.id}"):
        train(config(), show_progress=False)
    assert contents(unfinished) == before


@pytest.mark.parametrize("more", [("recipe.epochs=4",), ("recipe.epochs=1", "dataset.train_images=32")])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_record(config, more):
    """Also where it is the last step that spoils the weights."""
    cfg = config("scheme=sgd", "optimizer.lr=1e38", "recipe.clip_norm=null", *more)
    with pytest.raises(InputError, match=r"loss is not finite .* smaller optimizer.lr than 1e\+38"):
        train(cfg, show_progress=False)
    record = open_record(cfg)
    assert not record.done
    assert (record.folder / "config.yaml").exists()
    assert (record.folder / "environment.json").exists()


def test_a_run_that_diverges_late_keeps_the_epochs_before(config, monkeypatch):
    decay = loop.lr_decay
    monkeypatch.setattr(loop, "lr_decay", lambda t, *rest: 1e38 if t == 4 else decay(t, *rest))
    with pytest.raises(InputError, match="loss is not finite"):
        train(config(), show_progress=False)
    assert [line["epoch"] for line in open_record(config()).metrics] == [0]
    assert checkpoint.load(open_record(config()).checkpoint)["step"] == 3


def test_a_folder_that_cannot_be_written_is_named(config, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=rf"^paths.runs={tmp_path / 'file' / 'runs'} cannot be written"):
        train(config(f"paths.runs={tmp_path / 'file' / 'runs'}"), show_progress=False)
    assert (tmp_path / "file").read_text() == "mine"


def test_what_was_there_stays_where_writing_fails(tmp_path):
    """On a real full disk: this process may write no file of more than 1,000 bytes."""
    path = tmp_path / "summary.json"
    write_atomically(path, "old")
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"summary.json cannot be written: File too large\."):
            write_atomically(path, "new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]
    write_atomically(path, "new" * 1000)
    assert path.read_text() == "new" * 1000
