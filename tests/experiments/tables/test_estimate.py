"""What the runs of tables will cost: their passes, the time of a pass, and the dry run that prints both."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT
from demo_runs import TINY, demo, table_of
from hypothesis import given, settings
from hypothesis import strategies as st

from rst.experiments.compose import compose
from rst.experiments.tables import estimate
from rst.experiments.tables.estimate import NETWORKS, plan, speed
from rst.experiments.tables.expansion import PlannedRun
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
    assert "In all 4 runs: 0 done, 0 half done, 0 running, 0 failed, 4 missing" in printed
    assert re.search(r"missing +4 +SAM +digits-wrn10_1-n64-e1-constant-p1", printed)
    assert "unknown: no run of wrn10_1 has been timed" in printed
    assert "12 passes left: " in printed  # in 2 steps SGD makes 2, SAM 4, RST and G-RST 3 each
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_many_runs_has_one_line_for_each_cell(
    copied: list[PlannedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "FEW", 7)
    shutil.rmtree(copied[2].record.folder)  # a run of SAM
    text = plan([table_of(copied[0].record.folder.parents[1], seeds=2)])
    assert re.search(r"^1/2 done +8 +SAM +digits-wrn10_1-n64-e1-constant-p1.0-c1$", text, re.MULTILINE)
    assert re.search(r"^2/2 done +4 +SGD +digits-wrn10_1-n64-e1-constant-p0.0$", text, re.MULTILINE)


def test_a_word_that_names_no_table_is_refused_in_a_sentence(
    script: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert script("sweep", "demos", "--dry-run") == 1
    assert re.match(r"sweep.py: there is no table demos: choose one of .*demo", capsys.readouterr().err)
    assert script("sweep", "seed=1") == 2
    assert "no table: write a file of configs/tables" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------------- passes


@given(p=st.floats(0, 1), epochs=st.integers(1, 5))
@settings(max_examples=20, deadline=None)
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
