"""What the runs of tables will cost: their passes, the time of a pass, and the dry run that prints both."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import ROOT
from demo_runs import TINY, demo, table_of
from hypothesis import given, settings
from hypothesis import strategies as st

from rst.experiments.compose import compose
from rst.experiments.launch import local
from rst.experiments.runs.record import Record
from rst.experiments.tables import estimate
from rst.experiments.tables.estimate import NETWORKS, Forecast, Speed, forecast, plan, speed
from rst.experiments.tables.expansion import PlannedRun, runs_of
from rst.experiments.training import train

# Of 2 steps, a run may well have no sharp one.
pytestmark = pytest.mark.filterwarnings("ignore:the gate of seed")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[PlannedRun]:
    """The runs of four rows and two seeds, all of them done."""
    runs = demo(tmp_path_factory.mktemp("trained"), seeds=2)
    for planned in runs:
        train(planned.spec, show_progress=False)
    return runs


@pytest.fixture
def copied(trained: list[PlannedRun], tmp_path: Path) -> list[PlannedRun]:
    """The same runs in a folder that the test may change."""
    shutil.copytree(trained[0].record.folder.parent, tmp_path / "runs")
    return demo(tmp_path, seeds=2)


# --------------------------------------------------------------------------------------------------------- dry runs


def test_a_dry_run_trains_nothing_and_lists_what_a_sweep_would_cost(
    tmp_path: Path, script: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [*TINY, f"paths.runs={tmp_path / 'runs'}", "max_seeds=1"]
    assert script("sweep", "demo", "table05", "--dry-run", *overrides) == 0
    printed = capsys.readouterr().out
    assert "In all 4 runs: 0 done, 0 diverged, 0 half done, 0 running, 0 failed, 4 missing" in printed
    assert re.search(r"missing +4 +SAM +digits-wrn10_1-n64-e1-constant-p1", printed)
    assert "unknown: no run of wrn10_1 has been timed" in printed
    # In 2 steps SGD makes 2 passes, SAM 4, RST and G-RST 3 each.
    assert "12 passes left, which take an unknown time" in printed
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_many_runs_has_one_line_for_each_cell(
    copied: list[PlannedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "FEW", 7)
    shutil.rmtree(copied[2].record.folder)  # a run of SAM
    text = plan([table_of(copied[0].record.folder.parents[1], seeds=2)])
    assert re.search(r"^1/2 done +8 +SAM$", text, re.MULTILINE)
    assert re.search(r"^2/2 done +4 +SGD$", text, re.MULTILINE)


Plan = Callable[[], str]


@pytest.fixture
def plan_after_a_report(
    copied: list[PlannedRun], script: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> Plan:
    """What a dry run prints of the runs, whose results a report has put into ``records.csv``."""
    overrides = [*TINY, f"paths.runs={copied[0].record.folder.parent}", "max_seeds=2"]
    assert script("report", "demo", *overrides) == 0

    def printed() -> str:
        capsys.readouterr()
        assert script("sweep", "demo", "--dry-run", *overrides) == 0
        return capsys.readouterr().out

    return printed


def test_a_dry_run_says_how_many_results_of_missing_runs_are_committed(
    copied: list[PlannedRun], plan_after_a_report: Plan
) -> None:
    for planned in copied[:3]:
        shutil.rmtree(planned.record.folder)
    file = copied[0].record.folder.parents[1] / "records.csv"
    assert f"{file} has the results of 3 runs that are missing here" in plan_after_a_report()


def test_where_no_run_of_a_kind_is_here_its_time_is_that_of_committed_results(
    copied: list[PlannedRun], plan_after_a_report: Plan
) -> None:
    shutil.rmtree(copied[0].record.folder.parent)
    assert "8 committed results, on cpu" in plan_after_a_report()


def test_a_word_that_names_no_table_is_refused_in_a_sentence(
    script: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert script("sweep", "demos", "--dry-run") == 1
    assert re.match(r"sweep.py: there is no table demos: did you mean demo\?", capsys.readouterr().err)
    assert script("sweep", "table3", "--dry-run") == 1
    assert "there is no table table3: did you mean table03?" in capsys.readouterr().err
    assert script("sweep", "sam-help", "--dry-run") == 1
    assert "there is no table or claim sam-help: did you mean sam-helps?" in capsys.readouterr().err
    assert script("sweep", "demo", "seed=1", "--dry-run") == 1
    assert "a table trains its rows from several seeds: leave seed=1 out; max_seeds=1" in capsys.readouterr().err
    assert script("sweep", "seed=1") == 2
    assert "no table: write a file of configs/tables" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------------- passes


@given(p=st.floats(0, 1), epochs=st.integers(1, 5))
@settings(max_examples=20)
def test_expected_passes_are_the_steps_plus_their_expected_extra_passes(p: float, epochs: int) -> None:
    spec = compose(["dataset=digits", "model=wrn10_1", "scheme=rst", *TINY, f"recipe.epochs={epochs}"])
    assert spec.changed(schedule={"p": p}).expected_passes == pytest.approx(2 * epochs * (1 + p))


def test_where_chance_has_no_part_training_counts_the_expected_passes(trained: list[PlannedRun]) -> None:
    for planned in trained:
        if planned.spec.scheme.name in ("sgd", "sam"):
            assert planned.record.summary["propagations"] == planned.spec.expected_passes


def test_only_passes_that_are_left_are_estimated(copied: list[PlannedRun]) -> None:
    table = table_of(copied[0].record.folder.parents[1], seeds=2)
    assert "0 passes left: 0.00 hours" in plan([table])
    shutil.rmtree(copied[2].record.folder)
    assert "\n4 passes left" in plan([table])
    copied[2].record.folder.mkdir()
    (copied[2].record.folder / "metrics.jsonl").write_text('{"propagations": 1.0}\n')
    assert "\n3 passes left" in plan([table])


# ------------------------------------------------------------------------------------------------------------- time


def test_the_time_of_a_pass_is_the_mean_over_the_runs_of_the_same_kind_that_are_done(copied: list[PlannedRun]) -> None:
    found = speed(copied[0].spec)
    assert found
    summaries = [planned.record.summary for planned in copied]
    assert found.seconds == pytest.approx(sum(own["train_seconds"] / own["propagations"] for own in summaries) / 8)
    assert found.source == "8 runs that are done, on cpu"
    changes = [{"recipe": {"batch_size": 16, "perturbation_batch": 16}}, {"model": {"widen_factor": 2}}]
    for change in [*changes, {"scale": "smoke"}]:
        assert speed(copied[0].spec.changed(**change)) is None


@pytest.mark.parametrize(
    ("overrides", "name", "gpus"),
    [
        (["model=wrn28_10", "dataset=cifar100"], "table03", 4),
        (["model=vit_s"], "table03", 4),
        (["model=resnet50", "dataset=imagenet"], "table04", 4),
        (["model=vgg16_bn", "recipe=single_gpu"], "table14", 1),
    ],
)
def test_sgd_is_estimated_to_take_the_time_that_the_paper_prints(
    overrides: list[str], name: str, gpus: int, tmp_path: Path
) -> None:
    spec = compose(["scheme=sgd", f"paths.runs={tmp_path}", *overrides])
    numbers = pd.read_csv(ROOT / "results" / "paper" / f"{name}.csv")
    whole = numbers[(numbers["model"] == NETWORKS[spec.network]) & (numbers["metric"] == "time_min")]
    minutes = whole[whole["source_note"].str.contains("one A100") == (gpus == 1)]["mean"].iloc[0]
    found = speed(spec)
    assert found
    assert found.seconds * spec.expected_passes == pytest.approx(gpus * 60 * minutes)
    assert found.source == f"the paper's {name}: {minutes:g} minutes on {gpus} A100"


def test_a_network_that_nobody_has_timed_has_no_time(tmp_path: Path) -> None:
    assert speed(compose(["model=wrn16_1", f"paths.runs={tmp_path}"])) is None
    assert speed(compose(["model=resnet18", "scale=smoke", f"paths.runs={tmp_path}"])) is None


def test_the_time_of_a_pass_on_several_devices_counts_each_of_them(copied: list[PlannedRun]) -> None:
    alone = speed(copied[0].spec)
    for planned in copied:
        starts = planned.record.folder / "starts.jsonl"
        starts.write_text(json.dumps(planned.record.environment | {"devices": 4}) + "\n")
    together = speed(copied[0].spec)
    assert alone
    assert together
    assert together.seconds == pytest.approx(4 * alone.seconds)


@pytest.mark.parametrize(
    "change",
    [
        *({"autocast": "bfloat16"}, {"tf32": True}, {"channels_last": True}, {"compile": True}),
        *({"deterministic": True}, {"recipe": {"perturbation_batch": 16}}),
    ],
    ids=str,
)
def test_runs_with_another_flag_are_of_another_kind(trained: list[PlannedRun], change: dict[str, object]) -> None:
    assert speed(trained[0].spec.changed(**change)) is None


SLOWER = "; this processor has no bfloat16 instructions and takes longer for the same runs than one that has"


@pytest.mark.parametrize("emulates", [True, False])
@pytest.mark.parametrize("autocast", ["bfloat16", None])
def test_forecast_and_dry_run_say_where_a_processor_lacks_the_instructions_of_a_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, emulates: bool, autocast: str | None
) -> None:
    monkeypatch.setattr(estimate, "emulates_bfloat16", lambda device: emulates)
    table = table_of(tmp_path, f"autocast={autocast or 'null'}")
    runs = runs_of([table])
    said = SLOWER * bool(emulates and autocast)
    assert forecast(runs, 1, False).sentence == f"4 runs to train: an unknown time for 4 of them{said}."
    assert plan([table]).endswith(f"\n12 passes left, which take an unknown time{said}")


# --------------------------------------------------------------------------------------------- before a sweep starts


def full_size(folder: Path, *overrides: str) -> list[PlannedRun]:
    spec = compose(["dataset=cifar10", "scheme=sgd", f"paths.runs={folder}", *overrides])
    return [PlannedRun(spec.changed(seed=seed), Record(folder / str(seed))) for seed in range(2)]


def test_runs_that_are_done_or_diverged_take_no_time(copied: list[PlannedRun]) -> None:
    assert forecast(copied, 1, False) == Forecast("0 runs to train.", False)
    shutil.rmtree(copied[0].record.folder)
    with copied[0].record.training(copied[0].spec):
        copied[0].record.diverge(2, "it diverged")
    assert forecast(copied, 1, False).sentence == "0 runs to train."


@pytest.mark.parametrize(("workers", "devices"), [(1, 1), (2, 1), (1, 2)])
def test_the_forecast_is_the_time_of_the_passes_that_are_left_shared_by_workers_and_devices(
    copied: list[PlannedRun], monkeypatch: pytest.MonkeyPatch, workers: int, devices: int
) -> None:
    monkeypatch.setattr(estimate, "speed", lambda spec: Speed(3600.0, "cpu", "a test"))
    shutil.rmtree(copied[2].record.folder)  # a run of SAM: 4 passes
    change = {"devices": devices, "recipe": {"perturbation_batch": 16}}
    runs = [PlannedRun(run.spec.changed(**change), run.record) for run in copied]
    found = forecast(runs, workers, False)
    hours = 4 / workers / devices
    assert found == Forecast(
        f"1 runs to train: about {hours:.2g} hours by {workers} workers, by the times of cpu.", False
    )


def test_less_than_an_hour_is_said_in_minutes(copied: list[PlannedRun], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "speed", lambda spec: Speed(60.0, "cpu", "a test"))
    shutil.rmtree(copied[2].record.folder)  # a run of SAM: 4 passes
    assert "about 2 minutes by 2 workers" in forecast(copied, 2, False).sentence


@pytest.mark.parametrize(("gpu_here", "days"), [(True, False), (False, True)])
def test_full_size_runs_without_a_gpu_take_days(tmp_path: Path, gpu_here: bool, days: bool) -> None:
    timed = forecast(full_size(tmp_path, "model=resnet18"), 8, gpu_here)
    assert timed.days == days
    assert ("without a GPU here" in timed.sentence) == days
    unknown = forecast(full_size(tmp_path, "model=wrn16_1"), 8, gpu_here)
    assert unknown == Forecast("2 runs to train: an unknown time for 2 of them.", days)


def test_more_than_a_day_is_days_on_a_gpu_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "DAY", 0.01)
    assert forecast(full_size(tmp_path, "model=resnet18"), 1, True).days


def test_small_runs_of_unknown_time_start_without_a_question(tmp_path: Path) -> None:
    assert not forecast(full_size(tmp_path, "scale=smoke"), 1, False).days
    assert not forecast(demo(tmp_path), 1, False).days


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU here, and no images looked for."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(local, "check", lambda runs: None)


@pytest.mark.usefixtures("on_cpu")
def test_a_sweep_that_takes_days_starts_only_with_yes(
    tmp_path: Path, script: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    swept: list[int] = []
    monkeypatch.setattr(local, "run", lambda runs, workers: swept.append(len(runs)) or [])
    words = ["table01", f"paths.runs={tmp_path / 'runs'}", "max_seeds=1"]
    assert script("sweep", *words) == 1
    out, err = capsys.readouterr()
    assert "without a GPU here" in out
    assert err.count("\n") == 1
    assert "write --yes (with make: YES=1) to start all the same, or take scale=cpu, scale=digits or scale=smoke" in err
    assert swept == []
    assert script("sweep", *words, "--yes") == 0
    assert len(swept) == 1


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("failures", [[], ["demo: SAM, seed 0: it failed"]])
def test_a_sweep_says_its_time_first_and_writes_its_report_last_also_after_failures(
    tmp_path: Path,
    script: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    failures: list[str],
) -> None:
    monkeypatch.setattr(local, "run", lambda runs, workers: print("they are trained") or failures)
    assert script("sweep", "demo", "--report", f"paths.runs={tmp_path / 'runs'}", "max_seeds=1") == bool(failures)
    out = capsys.readouterr().out
    assert out.index("4 runs to train") < out.index("they are trained") < out.index("# ") < out.index("Written:")
    assert (tmp_path / "tables" / "demo.md").exists()
    assert "scale" not in (tmp_path / "tables" / "demo.md").read_text()
