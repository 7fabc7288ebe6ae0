"""Verdicts on the claims of ``configs/claims.yaml``, computed from what came out of their runs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from rst.experiments.report.labels import dataset_of, network_of
from rst.experiments.report.records import Outcome, Outcomes
from rst.experiments.report.results import equal_conditions, times_of
from rst.experiments.report.statistics import (
    CONFIDENCE,
    Evidence,
    Interval,
    above,
    all_of,
    any_of,
    below,
    beyond,
    holm,
    interval,
    within,
)
from rst.experiments.tables.claim_file import ClaimContent, Comparison
from rst.experiments.tables.claims import Claim
from rst.experiments.tables.expansion import Cell

WORDS = ("holds", "fails", "undecided", "not run")
LEVEL = 1 - CONFIDENCE


@dataclass(frozen=True)
class Compared:
    """A comparison over the seeds. The difference of a seed is the mean over the claim's networks and data sets."""

    comparison: Comparison
    metric: str
    difference: Interval
    places: Mapping[str, Interval]
    """The difference on each network and data set alone, by their names."""
    gap: float
    """The absolute difference between the two rows of the claim's ``gap``, mean over seeds, networks and data sets."""
    margin: float | None
    """In units of the metric."""
    supports: Evidence
    """That the comparison is as it is expected to be."""
    opposes: Evidence
    """That the opposite is so."""

    @property
    def word(self) -> str:
        """Where its 95 % interval lies: wholly as claimed ("holds"), wholly elsewhere ("fails"), else "undecided"."""
        low, high = self.difference.low, self.difference.high
        begin, end = self.expected
        return "holds" if begin < low and high < end else "fails" if low > end or high < begin else "undecided"

    @property
    def expected(self) -> tuple[float, float]:
        """Between which values the claim expects the difference."""
        end = self.margin or 0.0
        return (-end if self.comparison.expect == "equal" else -math.inf), end


@dataclass(frozen=True)
class Verdict:
    """What the runs of one scale say of a claim."""

    claim: Claim
    word: str
    """One of `WORDS`."""
    why_not_run: str
    diverged: int
    """How many runs of the claim diverged."""
    compared: Sequence[Compared]
    p_holds: float
    """p of the t-tests that all comparisons are as expected, after Holm's correction over the claims that were run."""
    p_fails: float
    """p of the t-tests that the opposite of one is so, likewise."""


def judge(claims: Sequence[Claim], outcomes: Outcomes) -> list[Verdict]:
    """The verdicts on the claims at one scale, in their order.

    A claim holds if every comparison is shown to be as expected, and fails if the opposite of one is shown (lower:
    a > b; equal and not_higher: a difference beyond the margin). To be shown, p of the paired t-test has to be at most
    0.05 after Holm's correction over all claims that were run, and that of the sign-flip test, which takes nothing for
    normally distributed, at most 0.05 by itself. Else the claim is undecided. It is not run where a result of one of
    its seeds is missing.

    A run that diverged is an outcome: its test error counts as that of guessing. It has no other metric.
    """
    found = [_compared(claim, outcomes) for claim in claims]
    run = [compared for compared in found if not isinstance(compared, str)]
    supports = [all_of([one.supports for one in compared]) for compared in run]
    opposes = [any_of([one.opposes for one in compared]) for compared in run]
    adjusted = iter(
        zip(holm([one.t for one in supports]), supports, holm([one.t for one in opposes]), opposes, strict=True)
    )
    verdicts = []
    for claim, compared in zip(claims, found, strict=True):
        ended = [outcomes[run.record.id] for run in claim.runs if run.record.id in outcomes]
        diverged = sum(outcome.diverged for outcome in ended)
        if isinstance(compared, str):
            verdicts.append(Verdict(claim, "not run", compared, diverged, [], 1.0, 1.0))
            continue
        p_holds, support, p_fails, opposition = next(adjusted)
        holds, fails = max(p_holds, support.flip) <= LEVEL, max(p_fails, opposition.flip) <= LEVEL
        word = "holds" if holds else "fails" if fails else "undecided"
        verdicts.append(Verdict(claim, word, "", diverged, compared, p_holds, p_fails))
    return verdicts


def side(weights: Mapping[str, float]) -> str:
    """One side of a comparison: a row, the mean of some rows, or a sum of shares of them."""
    total = sum(weights.values())
    if len(weights) == 1:
        return next(iter(weights))
    if len(set(weights.values())) == 1:
        return "mean of " + ", ".join(weights)
    return " + ".join(f"{weight / total:.2g} {row}" for row, weight in weights.items())


def _compared(claim: Claim, outcomes: Outcomes) -> list[Compared] | str:
    """The comparisons of a claim, or why it was not run."""
    if not claim.runs:
        return "the scale lacks its data set"
    there = sum(run.record.id in outcomes for run in claim.runs)
    if there < len(claim.runs):
        return f"{there} of {len(claim.runs)} runs are there"
    compared = []
    for comparison in claim.content.comparisons:
        metric = comparison.metric or claim.content.metric
        places = {_name(cells): _values(cells, metric, outcomes) for cells in claim.places}
        missing = next((values for values in places.values() if isinstance(values, str)), None)
        if missing is not None:
            return missing
        known = {name: values for name, values in places.items() if not isinstance(values, str)}
        compared.append(_contrast(claim.content, comparison, metric, known))
    return compared


def _name(cells: Mapping[str, Cell]) -> str:
    cell = next(iter(cells.values()))
    return ", ".join(filter(None, (network_of(cell), dataset_of(cell))))


Values = Mapping[str, Sequence[float]]
"""The values of a metric by row, one for each seed."""


def _values(cells: Mapping[str, Cell], metric: str, outcomes: Outcomes) -> Values | str:
    """The values on one network and data set, or why there are none."""
    ended = {row: [outcomes[run.record.id] for run in cell.runs] for row, cell in cells.items()}
    if metric == "train_seconds":
        times = [times_of({i: one for i, one in enumerate(own) if not one.diverged}) for own in ended.values()]
        seeds = len(next(iter(ended.values())))
        if len(equal_conditions(times)) < seeds:
            return f"times of {_name(cells)} were not taken under equal conditions"
    values = {row: [_value(one, metric, cells[row]) for one in own] for row, own in ended.items()}
    without = sum(value is None for own in values.values() for value in own)
    if without:
        return f"{without} runs on {_name(cells)} have no {metric}"
    return {row: [value for value in own if value is not None] for row, own in values.items()}


def _value(outcome: Outcome, metric: str, cell: Cell) -> float | None:
    if outcome.diverged and metric == "test_error":
        return 100 * (1 - 1 / cell.spec.dataset.num_classes)
    return outcome.summary.get(metric)


def _contrast(content: ClaimContent, comparison: Comparison, metric: str, places: Mapping[str, Values]) -> Compared:
    own = {name: _difference(values, comparison.a, comparison.b) for name, values in places.items()}
    differences = [mean(seed) for seed in zip(*own.values(), strict=True)]
    first, second = content.gap
    gap = mean(abs(mean(_difference(values, {first: 1}, {second: 1}))) for values in places.values())
    margin = None if comparison.margin is None else comparison.margin * gap
    if comparison.expect == "equal":
        supports, opposes = within(differences, margin or 0.0), beyond(differences, margin or 0.0)
    else:
        supports, opposes = below(differences, margin or 0.0), above(differences, margin or 0.0)
    alone = {name: interval(values) for name, values in own.items()}
    return Compared(comparison, metric, interval(differences), alone, gap, margin, supports, opposes)


def _difference(values: Values, a: Mapping[str, float], b: Mapping[str, float]) -> list[float]:
    """The weighted mean of the rows ``a`` less that of the rows ``b``, seed by seed."""
    return [x - y for x, y in zip(_weighted(values, a), _weighted(values, b), strict=True)]


def _weighted(values: Values, weights: Mapping[str, float]) -> list[float]:
    total = sum(weights.values())
    seeds = zip(*(values[row] for row in weights), strict=True)
    return [sum(w * x for w, x in zip(weights.values(), seed, strict=True)) / total for seed in seeds]
