"""What a record holds, and that nothing in it is lost, mixed up or half written."""

import json
import os
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from stopped_runs import contents, unfinished_run

import rst
from rst.experiments import build
from rst.experiments.data import load
from rst.experiments.devices import peak_memory, reset_peak_memory
from rst.experiments.errors import InputError
from rst.experiments.models import WideResNet
from rst.experiments.runs import environment
from rst.experiments.runs.identity import run_id
from rst.experiments.runs.record import Locked, Record, open_record
from rst.experiments.spec import RunSpec
from rst.experiments.training import checkpoint, loop, train
from rst.variants import ESAM
from rst.variants.variant import Closure

Config = Callable[..., RunSpec]

# -------------------------------------------------------------------------------------------------------- what it holds


@pytest.fixture
def done(config: Config) -> Record:
    return train(config("seed=4"), show_progress=False)


def test_the_spec_is_kept_whole(config: Config, done: Record) -> None:
    assert done.spec == config("seed=4")
    assert done.id == run_id(done.spec)


def test_the_config_of_a_record_is_plain_data_with_the_keys_of_a_command(config: Config, done: Record) -> None:
    kept = yaml.safe_load((done.folder / "config.yaml").read_text())
    assert kept == config("seed=4").dump()
    assert "_target_" not in str(kept)


def test_a_start_says_what_the_run_ran_on(config: Config, done: Record) -> None:
    (start,) = done.starts
    assert done.environment == start
    assert start.keys() >= {"git_commit", "python", "torch", "torchvision", "timm", "rst", "platform"}
    assert torch.__version__.startswith(start["torch"])
    assert start["rst"] == rst.__version__
    assert start["device"] == "cpu"
    assert start["threads"] == torch.get_num_threads()
    digits = load("digits", cache=done.folder, image_size=8, channels=1)
    assert start["data_digest"] == digits.digest
    keys = ("devices", "autocast", "tf32", "channels_last", "compile", "deterministic")
    assert {key: start[key] for key in keys} == {key: getattr(config(), key) for key in keys}


def test_every_start_is_kept_with_the_flags_of_its_own_command(config: Config) -> None:
    """Flags that are not in the id may change when the run goes on; config.yaml has those of the first start."""
    record = stopped_after_an_epoch(config())
    train(config("deterministic=true", "channels_last=true"), show_progress=False)
    torch.use_deterministic_algorithms(False)
    assert [start["deterministic"] for start in record.starts] == [False, True]
    assert [start["channels_last"] for start in record.starts] == [False, True]
    assert record.environment == record.starts[-1]
    assert record.spec == config()


@pytest.mark.parametrize("part", ['{"git_commit": "', "{"])
def test_a_start_whose_line_was_cut_off_is_dropped_at_the_next_start(config: Config, part: str) -> None:
    record = stopped_after_an_epoch(config())
    file, before = record.folder / "starts.jsonl", record.starts
    file.write_text(file.read_text() + part)
    train(config(), show_progress=False)
    assert len(record.starts) == 2
    assert len(file.read_text().splitlines()) == 2
    assert record.starts[0] == before[0]


def stopped_after_an_epoch(spec: RunSpec) -> Record:
    """The record of a run that an error ends after its first epoch, which has a checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        append = Record.append

        def failing(self: Record, metrics: dict[str, Any]) -> None:
            if metrics["epoch"] == 1:
                raise KeyboardInterrupt
            append(self, metrics)

        patch.setattr(Record, "append", failing)
        with pytest.raises(KeyboardInterrupt):
            train(spec, show_progress=False)
    return open_record(spec)


def test_outside_a_git_checkout_there_is_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "environment.py"))
    assert environment.environment(torch.device("cpu"))["git_commit"] is None


def test_the_metrics_are_one_line_an_epoch(done: Record) -> None:
    assert [line["epoch"] for line in done.metrics] == [0, 1]
    assert [line["step"] for line in done.metrics] == [3, 6]
    for line in done.metrics:
        assert line.keys() >= {"train_loss", "train_error", "clean_loss", "perturbed_loss", "loss_gap", "lr", "p"}
        assert line.keys() >= {"test_error", "test_loss", "sharp_steps", "propagations", "train_seconds"}


def test_the_summary_has_the_keys_that_tables_are_made_of(done: Record) -> None:
    assert done.summary.keys() >= {
        *("test_error", "best_test_error", "train_seconds", "total_steps", "sharp_steps", "propagations"),
        *("extra_propagations_expected", "extra_propagations_realised", "images_per_second", "peak_memory_bytes"),
        *("epochs", "seed"),
    }
    assert (done.summary["total_steps"], done.summary["epochs"], done.summary["seed"]) == (6, 2, 4)
    assert done.summary["test_error"] == done.metrics[-1]["test_error"]
    assert done.summary["best_test_error"] == min(line["test_error"] for line in done.metrics)
    assert "top5_error" not in done.summary


def test_the_top_5_error_is_there_from_100_classes_on(config: Config) -> None:
    spec = config("dataset=cifar100", "dataset.source=digits", "recipe.epochs=1", "seed=1")
    summary = train(spec, show_progress=False).summary
    assert 0 <= summary["top5_error"] <= summary["test_error"]


@pytest.mark.parametrize("scheme", ["sgd", "sam", "rst", "grst"])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_sharp_steps_and_propagations_are_those_of_the_gate_and_those_counted(
    config: Config, scheme: str, micro_batches: int
) -> None:
    spec = config(f"scheme={scheme}", "seed=2", f"recipe.perturbation_batch={32 // micro_batches}")
    gate = rst.RST(torch.nn.Linear(1, 1), 0.1, spec.p, total_steps=6, seed=2).gate
    images = 0

    def count(module: torch.nn.Module, inputs: tuple, output: object) -> None:
        nonlocal images
        if isinstance(module, WideResNet) and module.training:
            images += len(inputs[0])

    hook = torch.nn.modules.module.register_module_forward_hook(count)
    try:
        summary = train(spec, show_progress=False).summary
    finally:
        hook.remove()
    sharp = int(gate.sum())
    # A plain step and, if there are any, a sharp one on a micro-batch, before the clock starts, are not counted.
    warm_up = (3 if sharp else 1) * 32 / micro_batches
    assert summary["sharp_steps"] == sharp
    assert summary["propagations"] == 6 + sharp == (images - warm_up) / 32
    assert summary["extra_propagations_realised"] == pytest.approx(sharp / 6)
    assert summary["extra_propagations_expected"] == spec.mean_p


def test_the_loss_gap_of_a_sharp_step_is_perturbed_minus_clean_loss(config: Config) -> None:
    for line in train(config("scheme=sam"), show_progress=False).metrics:
        assert line["loss_gap"] == pytest.approx(line["perturbed_loss"] - line["clean_loss"])
        assert line["clean_loss"] == pytest.approx(line["train_loss"], rel=1e-5)  # every step is sharp
        assert line["loss_gap"] > 0
    for line in train(config("scheme=sgd"), show_progress=False).metrics:
        assert line["clean_loss"] is line["perturbed_loss"] is line["loss_gap"] is None


def test_both_losses_of_esam_are_over_the_images_of_its_perturbed_pass(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    select, expected = ESAM.select, []

    def noted(self: ESAM, closure: Closure, clean_losses: torch.Tensor) -> tuple[Any, float, float]:
        rows, *costs = select(self, closure, clean_losses)
        expected.append(float(clean_losses[rows].mean()))
        return rows, *costs

    monkeypatch.setattr(ESAM, "select", noted)
    spec = config("scheme=sam", "variant=esam", "recipe.l2=0", "recipe.perturbation_batch=32", "recipe.epochs=1")
    [line] = train(spec, show_progress=False).metrics
    _warm_up, *steps = expected
    assert line["clean_loss"] == pytest.approx(sum(steps) / len(steps))
    assert line["clean_loss"] != pytest.approx(line["train_loss"], rel=1e-3)


def test_evaluation_is_not_in_the_training_time(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = loop.evaluate
    monkeypatch.setattr(loop, "evaluate", lambda *arguments: time.sleep(0.5) or evaluate(*arguments))
    begin = time.perf_counter()
    seconds = train(config(), show_progress=False).summary["train_seconds"]
    assert 0 < seconds <= time.perf_counter() - begin - 2 * 0.5


def test_an_epoch_that_was_not_evaluated_has_no_test_error(config: Config) -> None:
    metrics = train(config("recipe.epochs=5", "evaluate_every=2"), show_progress=False).metrics
    assert [line.get("test_error") is not None for line in metrics] == [False, True, False, True, True]


# ------------------------------------------------------------------------------------------------------------- memory


def test_the_peak_memory_of_a_run_is_its_own_and_not_that_of_earlier_runs(config: Config) -> None:
    device = torch.device("cpu")
    reset_peak_memory(device)
    if peak_memory(device) is None:
        pytest.skip("this system does not tell the memory of a part of a process")
    large, small = (
        train(config("recipe.epochs=1", *more), show_progress=False).summary["peak_memory_bytes"]
        for more in (
            ("model=wrn16_2", "dataset.train_images=900", "recipe.batch_size=900", "recipe.perturbation_batch=900"),
            ("dataset.train_images=32",),
        )
    )
    assert small < large - 50e6


def test_a_memory_that_nobody_can_tell_is_null(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *arguments: False)  # as where there is no /proc
    assert peak_memory(torch.device("cpu")) is None
    monkeypatch.setattr(loop, "peak_memory", lambda device: None)
    summary = train(config("recipe.epochs=1"), show_progress=False).summary
    assert summary["peak_memory_bytes"] is None


# ---------------------------------------------------------------------------------------------------------- set aside


def test_a_record_that_is_set_aside_keeps_its_files_under_the_next_free_name(tmp_path: Path) -> None:
    record = Record(tmp_path / "an-id")
    assert record.set_aside() is None
    for number in (1, 2):
        record.fail(f"attempt {number}")
        assert record.set_aside() == tmp_path / f"an-id.old-{number}"
        assert (tmp_path / f"an-id.old-{number}" / "failure.txt").read_text() == f"attempt {number}\n"
        assert not record.folder.exists()


def test_a_record_that_is_being_trained_is_not_set_aside(config: Config) -> None:
    record = open_record(config())
    match = f"run {record.id} is being trained by another process"
    with record.training(config()), pytest.raises(Locked, match=match):
        record.set_aside()
    assert record.folder.exists()


# ---------------------------------------------------------------------------------------------------- what can go wrong


@pytest.fixture
def unfinished(config: Config) -> Record:
    return unfinished_run(config())


def test_a_second_process_on_one_run_is_refused(
    overrides: list[str],
    config: Config,
    command: Callable[..., tuple[BaseProcess, Path]],
    unfinished: Record,
) -> None:
    with unfinished.training(config()):
        before = contents(unfinished)
        process, output = command(*overrides)
        process.join(timeout=60)
        assert process.exitcode == 1
        assert output.read_text() == f"train.py: run {unfinished.id} is being trained by another process.\n"
        assert contents(unfinished) == before
    train(config(), show_progress=False)


@pytest.mark.parametrize(
    ("more", "when"),
    [
        (("recipe.epochs=4",), "in the middle of the run"),
        (("recipe.epochs=1", "dataset.train_images=32"), "by the last step, so that only the test loss shows it"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_record(
    config: Config, more: tuple[str, ...], when: str
) -> None:
    spec = config("scheme=sgd", "optimizer.lr=1e38", "recipe.clip_norm=null", *more)
    with pytest.raises(InputError, match=r"loss is not finite .* smaller optimizer.lr than 1e\+38"):
        train(spec, show_progress=False)
    record = open_record(spec)
    assert not record.done
    assert record.spec == spec
    assert len(record.starts) == 1


def test_a_run_that_diverges_late_keeps_the_epochs_before(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    decay = build.lr_decay
    monkeypatch.setattr(build, "lr_decay", lambda t, *rest: 1e38 if t == 4 else decay(t, *rest))
    with pytest.raises(InputError, match="loss is not finite"):
        train(config(), show_progress=False)
    record = open_record(config())
    assert [line["epoch"] for line in record.metrics] == [0]
    # Where steps are slow, another checkpoint is written within the second epoch.
    assert checkpoint.load(record.checkpoint)["counters"]["step"] >= 3


def test_a_folder_that_cannot_be_written_is_named(config: Config, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=rf"^paths.runs={tmp_path / 'file' / 'runs'} cannot be written"):
        train(config(f"paths.runs={tmp_path / 'file' / 'runs'}"), show_progress=False)
    assert (tmp_path / "file").read_text() == "mine"


# -------------------------------------------------------------------------------------------------------- damaged files


@pytest.mark.parametrize(
    ("file", "attribute"), [("config.yaml", "spec"), ("starts.jsonl", "environment"), ("summary.json", "summary")]
)
@pytest.mark.parametrize("content", ["", "{", "[1, 2]\n", "null\n", "\x00\n", '{"a": 1}\n', "a: [\n"])
def test_a_damaged_file_of_a_record_is_named_in_one_sentence(
    done: Record, file: str, attribute: str, content: str
) -> None:
    (done.folder / file).write_text(content)
    with pytest.raises(
        InputError, match=rf"^{done.folder / file} is (damaged|of an older version.*): delete the folder"
    ):
        getattr(done, attribute)


@pytest.mark.parametrize("group", ["model", "optimizer", "schedule", "variant"])
def test_a_config_with_code_in_it_is_damaged_and_its_code_is_not_called(
    done: Record, group: str, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    config = done.folder / "config.yaml"
    plain = yaml.safe_load(config.read_text())
    plain[group]["option"] = {"_target_": "pathlib.Path.touch", "_args_": [str(trace)]}
    config.write_text(yaml.safe_dump(plain))
    with pytest.raises(InputError, match=f"^{config} is damaged"):
        _ = done.spec
    config.write_text(f"network: !!python/object/apply:pathlib.Path.touch [{trace}]\n")
    with pytest.raises(InputError, match=f"^{config} is damaged"):
        _ = done.spec
    assert not trace.exists()


def test_a_line_of_metrics_that_is_being_written_is_left_out(done: Record) -> None:
    before = done.metrics
    metrics = done.folder / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + json.dumps(before[-1])[:-5])
    assert done.metrics == before
