"""Verdicts on claims, from runs whose results the test chooses."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_runs import CPU, finish, standing_in

from rst.experiments.report.claims import WORDS, Verdict, judge
from rst.experiments.report.figures.forest import forest
from rst.experiments.report.records import Outcome, outcomes_of
from rst.experiments.tables.claims import Claim, load_claims
from rst.experiments.tables.expansion import PlannedRun, runs_of

FILES = {
    "schemes": """
        title: Schemes
        metrics: [test_error]
        overrides: [dataset=digits, wandb.mode=disabled, device=cpu]
        networks: {one: [model=wrn10_1], two: [model=wrn16_1]}
        rows: {SGD: [scheme=sgd], SAM: [scheme=sam], RST: [scheme=rst], G-RST: [scheme=grst]}
        """
}
FILE = """
seeds: {paper: 8, smoke: 2}
claims:
  lower:
    section: "1"
    quote: better
    claim: SAM is lower than SGD.
    table: schemes
    networks: [one]
    comparisons: [{a: SAM, b: SGD, expect: lower}]
  not-higher:
    section: "2"
    quote: as good
    claim: RST is as good as SAM.
    table: schemes
    networks: [one]
    comparisons: [{a: RST, b: SAM, expect: not_higher, margin: 0.25}]
  equal:
    section: "3"
    quote: as long
    claim: RST is half-way.
    table: schemes
    networks: [one]
    metric: train_seconds
    comparisons: [{a: RST, b: {SGD: 3, SAM: 3}, expect: equal, margin: 0.25}]
  both:
    section: "4"
    quote: both
    claim: On both networks the mean of RST and G-RST is lower than SGD, and SAM too.
    table: schemes
    comparisons: [{a: [RST, G-RST], b: SGD, expect: lower}, {a: SAM, b: SGD, expect: lower}]
"""
NOISE = [0.02, -0.03, 0.01, 0.0, -0.02, 0.03, -0.01, 0.015]
"""What the seeds add to an error."""

Load = Callable[[], dict[str, Claim]]


_files = standing_in(FILES, FILE)


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """The claims of FILE, with their records in a folder of the test."""
    return lambda: {claim.name: claim for claim in load_claims([f"paths.runs={tmp_path / 'runs'}"])}


def row_of(claim: Claim, run: PlannedRun) -> str:
    return next(cell.row for cell in claim.table.cells if run.record.id in {own.record.id for own in cell.runs})


def train(claim: Claim, errors: dict[str, float], seconds: dict[str, float] | None = None) -> None:
    """Finish all runs of the claim: a seed's error is that of its row, and something that differs between the rows."""
    for run in claim.runs:
        row, i = row_of(claim, run), run.spec.seed
        noise = NOISE[(i + 3 * list(errors).index(row)) % len(NOISE)]
        finish(run, test_error=errors[row] + noise, train_seconds=(seconds or errors)[row] + noise)


def verdicts(*known: Claim) -> dict[str, Verdict]:
    outcomes = outcomes_of(runs_of(claim.table for claim in known), None)
    return {verdict.claim.name: verdict for verdict in judge(known, outcomes)}


def word(claim: Claim) -> str:
    return verdicts(claim)[claim.name].word


# -------------------------------------------------------------------------------------------------------- the verdict


@pytest.mark.parametrize(("sam", "expected"), [(2.0, "holds"), (5.0, "undecided"), (8.0, "fails")])
def test_lower_holds_fails_or_stays_undecided(load: Load, sam: float, expected: str) -> None:
    claim = load()["lower"]
    train(claim, {"SGD": 5.0, "SAM": sam})
    assert word(claim) == expected


@pytest.mark.parametrize(
    ("rst", "expected"), [(1.0, "holds"), (2.0, "holds"), (2.5, "holds"), (3.0, "undecided"), (4.0, "fails")]
)
def test_not_higher_allows_a_share_of_the_gap_and_no_more(load: Load, rst: float, expected: str) -> None:
    claim = load()["not-higher"]
    train(claim, {"SGD": 6.0, "SAM": 2.0, "RST": rst})  # the margin is 1
    assert word(claim) == expected
    [compared] = verdicts(claim)["not-higher"].compared
    assert compared.margin == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("rst", "expected"), [(15.0, "holds"), (17.5, "undecided"), (20.0, "fails"), (10.0, "fails")])
def test_equal_holds_within_the_margin_and_fails_beyond_it_on_either_side(
    load: Load, rst: float, expected: str
) -> None:
    claim = load()["equal"]
    train(claim, {"SGD": 10.0, "SAM": 20.0, "RST": rst})
    assert word(claim) == expected


def test_a_claim_holds_only_if_all_its_comparisons_do_and_fails_if_one_does(load: Load) -> None:
    claim = load()["both"]
    train(claim, {"SGD": 5.0, "SAM": 4.0, "RST": 4.0, "G-RST": 4.0})
    assert word(claim) == "holds"
    train(claim, {"SGD": 5.0, "SAM": 5.0, "RST": 4.0, "G-RST": 4.0})
    assert word(claim) == "undecided"
    train(claim, {"SGD": 5.0, "SAM": 6.0, "RST": 4.0, "G-RST": 4.0})
    assert word(claim) == "fails"


def test_a_seed_is_one_difference_averaged_over_networks_and_each_place_is_shown_alone(load: Load) -> None:
    claim = load()["both"]
    for run in claim.runs:
        row = row_of(claim, run)
        own = {"SGD": 5.0, "SAM": 4.0, "RST": 2.0, "G-RST": 4.0}[row]
        finish(run, test_error=own + (run.spec.network == "wrn16_1") * (row == "SGD") + run.spec.seed / 10)
    first, second = verdicts(claim)["both"].compared
    assert first.difference.n == second.difference.n == 8
    assert first.difference.mean == pytest.approx(np.mean([3 - 5, 3 - 6]))
    assert {name: place.mean for name, place in first.places.items()} == pytest.approx({"one": -2, "two": -3})
    assert first.gap == pytest.approx(1.5)


def test_six_claims_need_a_smaller_p_than_one(load: Load) -> None:
    known = load()
    for claim in known.values():
        train(claim, {"SGD": 5.0, "SAM": 4.995, "RST": 4.98, "G-RST": 4.98})
    together, alone = verdicts(*known.values()), verdicts(known["lower"])
    assert together["lower"].p_holds >= alone["lower"].p_holds
    assert together["lower"].p_fails >= alone["lower"].p_fails


# ------------------------------------------------------------------------------------------------------ what is missing


def test_a_claim_that_lacks_a_run_is_not_run_and_says_how_many_there_are(load: Load) -> None:
    claim = load()["lower"]
    assert verdicts(claim)["lower"].why_not_run == "0 of 16 runs are there"
    train(claim, {"SGD": 5.0, "SAM": 2.0})
    (claim.runs[3].record.folder / "summary.json").unlink()
    verdict = verdicts(claim)["lower"]
    assert (verdict.word, verdict.why_not_run) == ("not run", "15 of 16 runs are there")


def test_claims_that_are_not_run_cost_the_others_nothing(load: Load) -> None:
    known = load()
    train(known["lower"], {"SGD": 5.0, "SAM": 4.98})
    together, alone = verdicts(*known.values()), verdicts(known["lower"])
    assert together["both"].word == "not run"
    assert together["lower"].p_holds == alone["lower"].p_holds


def test_times_under_unlike_conditions_are_not_compared(load: Load) -> None:
    claim = load()["equal"]
    train(claim, {"SGD": 10.0, "SAM": 20.0, "RST": 15.0})
    finish(claim.runs[0], on=CPU | {"threads": 2}, train_seconds=10.0)
    verdict = verdicts(claim)["equal"]
    assert (verdict.word, verdict.why_not_run) == ("not run", "times of one were not taken under equal conditions")


def test_a_run_that_diverged_counts_with_the_error_of_guessing(load: Load) -> None:
    claim = load()["lower"]
    train(claim, {"SGD": 5.0, "SAM": 2.0})
    lost = next(run for run in claim.runs if row_of(claim, run) == "SAM")
    (lost.record.folder / "summary.json").unlink()
    lost.record.diverge(7, "the loss is not finite")
    verdict = verdicts(claim)["lower"]
    assert (verdict.word, verdict.diverged) == ("undecided", 1)
    [compared] = verdict.compared
    assert compared.difference.mean == pytest.approx((7 * -3 + 90 - 5) / 8, abs=0.1)  # ten classes


# --------------------------------------------------------------------------------------------------------------- laws


@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0, 50)), min_size=8, max_size=8))
@settings(max_examples=30)
def test_a_claim_never_holds_together_with_its_opposite(pairs: list[tuple[float, float]]) -> None:
    [claim] = load_claims(names=["lower"])
    sgd, sam = ([round(pair[i], 2) for pair in pairs] for i in (0, 1))
    forward, backward = (
        judge([claim], made_up(claim, {"SGD": own, "SAM": other}))[0].word for own, other in ((sgd, sam), (sam, sgd))
    )
    assert {forward, backward} <= set(WORDS) - {"not run"}
    assert (forward == "holds") == (backward == "fails")


def made_up(claim: Claim, errors: dict[str, list[float]]) -> dict[str, Outcome]:
    return {
        run.record.id: Outcome({"outcome": "done", "test_error": str(errors[cell.row][run.spec.seed])})
        for cell in claim.table.cells
        for run in cell.runs
    }


def test_a_comparison_and_its_line_in_the_figure_say_where_its_interval_lies(load: Load) -> None:
    claim = load()["both"]
    train(claim, {"SGD": 5, "SAM": 2, "RST": 7, "G-RST": 8})
    verdict = verdicts(claim)["both"]
    assert verdict.word == "fails"
    assert [one.word for one in verdict.compared] == ["fails", "holds"]
    [ax] = forest([verdict], "Claims").axes
    [beside] = ax.child_axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["both", ""]
    assert [label.get_text() for label in beside.get_yticklabels()] == ["mean of RST, G-RST", "SAM"]
