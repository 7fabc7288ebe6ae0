"""``docs/claims.md``: the verdict on every claim at every scale that has records, and the evidence for it."""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from rst.experiments.compose import PROJECT, compose
from rst.experiments.files import write_atomically
from rst.experiments.report import records
from rst.experiments.report.claims import WORDS, Compared, Verdict, judge, side
from rst.experiments.report.figures.forest import forest
from rst.experiments.report.figures.saving import save
from rst.experiments.report.naming import folder_at
from rst.experiments.report.records import Outcomes, outcomes_of
from rst.experiments.report.tables import METRICS, wrapped
from rst.experiments.report.verdict import PLURALS, VerdictLine
from rst.experiments.tables.claim_file import read_claims
from rst.experiments.tables.claims import load_claims
from rst.experiments.tables.expansion import runs_of

INTRODUCTION = """\
This page puts each claim of the paper as a comparison that can come out either way, and gives what our runs say of it.
Rows, directions, margins and numbers of seeds stand in `configs/claims.yaml`, which was committed before the runs it
judges, except that the three claims on right labels were added after the runs at scale `gpu`. Those three compare rows
of one table, on ResNet18 and CIFAR-10; at scales `gpu` and `cpu` all other claims have right labels too.
This page is computed from `records.csv` of each scale by `make claims SCALE=<scale>`, which trains the runs that are
missing first.

Schemes are compared by differences a - b between runs of one seed, which share initial weights, order of images and
the numbers that the gate draws. The difference of a seed is the mean over the networks and data sets of the claim. A
claim **holds** if every comparison is shown to be as expected, and **fails** if the opposite of one is shown; else it
is undecided. To be shown, p of the paired t-test is at most 0.05 after Holm's correction over all claims that were
run at the scale, and p of the sign-flip test, which assumes no normal distribution, at most 0.05 by itself. A margin,
for "as good as", is a share of the difference between the two rows that are named beside it. A claim of which
runs are missing is not run, and nothing is concluded from those that are there. A run that diverged counts with the
error of guessing. In the figures a mark says whether the interval of its comparison lies wholly where the claim expects
it ("holds") or wholly elsewhere ("fails"), and the colour of a name is the verdict."""

SIGNS = {"lower": "a < b", "equal": "a = b ± margin", "not_higher": "a < b + margin"}
"""How a table writes the direction that a claim expects."""


@dataclass(frozen=True)
class Scale:
    """The claims at one scale."""

    name: str
    folder: Path
    """The folder of the results of the scale."""
    stands_in: bool
    """Whether digits stand in for the images of a data set."""
    verdicts: Sequence[Verdict]
    outcomes: Outcomes


def write(overrides: Sequence[str], tell: Callable[[str], None] = print) -> list[Path]:
    """Write the page, and the figures and records of the scale that ``overrides`` choose; return the files.

    The page has all scales with records. It is ``docs/claims.md``, or ``claims.md`` beside the runs where these are in
    another folder than the project's. At a scale where digits stand in for other images, it is in the scale's folder.

    Raises:
        InputError: the file of claims is wrong, a record is damaged, or a file cannot be written.
    """
    own = _read(overrides, tell)
    runs = runs_of(verdict.claim.table for verdict in own.verdicts)
    records.write(runs, own.outcomes, own.folder / records.NAME)
    files = [*_draw(own), own.folder / records.NAME]
    page = _place(own, overrides)
    page.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(page, _page([own] if own.stands_in else _with_others(own, overrides), page))
    return [page, *files]


def opening(overrides: Sequence[str]) -> list[VerdictLine]:
    """What an overview of the scale opens with: a line for each claim; none where no run of a claim has ended."""
    own = _read(overrides, lambda sentence: None)
    if not own.outcomes:
        return []
    evidence = _link(_place(own, overrides), own.folder / "README.md")
    return [
        VerdictLine(verdict.claim.content.claim, verdict.word, f"{evidence}#{verdict.claim.name}")
        for verdict in own.verdicts
    ]


def _place(own: Scale, overrides: Sequence[str]) -> Path:
    """The file of the page."""
    results = Path(compose(overrides).paths.runs).parent
    if own.stands_in:
        return own.folder / "claims.md"
    in_project = results.resolve() == PROJECT / "results"
    return results.parent / "docs" / "claims.md" if in_project else results / "claims.md"


def _read(overrides: Sequence[str], tell: Callable[[str], None]) -> Scale:
    claims = list(load_claims(overrides, tell=tell))
    runs = runs_of(claim.table for claim in claims)
    spec = runs[0].spec if runs else compose(overrides)
    folder = folder_at(spec, spec.stands_in)
    outcomes = outcomes_of(runs, folder / records.NAME)
    return Scale(spec.scale, folder, spec.stands_in, judge(claims, outcomes), outcomes)


def _with_others(own: Scale, overrides: Sequence[str]) -> list[Scale]:
    """The scale, and the others that have runs of claims, in the order of the file."""
    others = [word for word in overrides if not word.startswith("scale=")]
    scales = []
    for name in read_claims().content.seeds:
        there = [*others, f"scale={name}"]
        spec = compose(there)
        if name == own.name:
            scales.append(own)
        elif not spec.stands_in and (folder_at(spec) / records.NAME).exists():
            scale = _read(there, lambda sentence: None)
            scales += [scale] if scale.outcomes else []
    return scales


# ---------------------------------------------------------------------------------------------------------- the figures


def _draw(scale: Scale) -> list[Path]:
    """A figure of all claims, and one of each that was run."""
    folder = scale.folder / "figures"
    (folder / "claims").mkdir(parents=True, exist_ok=True)
    whole = forest(scale.verdicts, f"Claims of the paper, scale {scale.name}")
    figures = {folder / f"claims.{kind}": whole for kind in ("png", "svg", "pdf")}
    for verdict in scale.verdicts:
        if verdict.compared:
            title = f"{verdict.claim.name}: {verdict.word}, scale {scale.name}"
            figures[folder / "claims" / f"{verdict.claim.name}.svg"] = forest([verdict], title)
    for file, figure in figures.items():
        save(figure, file)
    return list(figures)


# ------------------------------------------------------------------------------------------------------- the page


def _page(scales: Sequence[Scale], page: Path) -> str:
    scales = sorted(scales, key=lambda scale: _counted(scale.verdicts)["not run"])  # Where most is known comes first.
    parts = ["# What holds of the paper's claims", INTRODUCTION, _summary(scales)]
    for scale in scales:
        figure = _link(scale.folder / "figures" / "claims.png", page)
        parts.append(f"![The claims at scale {scale.name}]({figure})")
    by_claim = zip(*(scale.verdicts for scale in scales), strict=True)
    parts += [_section(verdicts, scales, page) for verdicts in by_claim]
    return "\n\n".join(filter(None, [*parts, _not_run(scales)])) + "\n"


def _link(file: Path, page: Path) -> str:
    return Path(os.path.relpath(file, page.parent)).as_posix()


def _summary(scales: Sequence[Scale]) -> str:
    """One line for each claim, with its verdict at each scale."""
    lines = []
    for verdicts in zip(*(scale.verdicts for scale in scales), strict=True):
        claim = verdicts[0].claim
        words = {f"`{scale.name}`": _word(verdict) for scale, verdict in zip(scales, verdicts, strict=True)}
        lines.append({"Claim": f"[{claim.content.claim}](#{claim.name})", "Section": claim.content.section, **words})
    counts = [
        f"Of {len(scale.verdicts)} claims at scale `{scale.name}`, "
        f"{', '.join(f'{PLURALS.get(word, word)}: {n}' for word, n in _counted(scale.verdicts).items())}."
        for scale in scales
    ]
    return " ".join(counts) + "\n\n" + _table(lines)


def _counted(verdicts: Sequence[Verdict]) -> dict[str, int]:
    counts = Counter(verdict.word for verdict in verdicts)
    return {word: counts[word] for word in WORDS}


def _word(verdict: Verdict) -> str:
    diverged = f" ({verdict.diverged} diverged)" if verdict.diverged else ""
    return (f"**{verdict.word}**" if verdict.word in ("holds", "fails") else verdict.word) + diverged


def _section(verdicts: Sequence[Verdict], scales: Sequence[Scale], page: Path) -> str:
    claim = verdicts[0].claim
    parts = [
        f"## {claim.name}",
        claim.content.claim,
        f"> {claim.content.quote} (Section {claim.content.section})",
    ]
    for verdict, scale in zip(verdicts, scales, strict=True):
        if verdict.compared:
            parts += _evidence(verdict, scale, page)
    return "\n\n".join(parts)


def _evidence(verdict: Verdict, scale: Scale, page: Path) -> list[str]:
    """The paragraphs on a claim at one scale: the verdict, the comparisons, their figure and what the runs cost."""
    diverged = f" {verdict.diverged} runs diverged." if verdict.diverged else ""
    figure = _link(scale.folder / "figures" / "claims" / f"{verdict.claim.name}.svg", page)
    return [
        wrapped(
            f"`{scale.name}`: {_word(verdict)}; n = {verdict.claim.seeds} seeds; p after Holm's correction: "
            f'{verdict.p_holds:.2g} for "holds", {verdict.p_fails:.2g} for "fails".{diverged}'
        ),
        _comparisons(verdict.compared, verdict.claim.content.gap),
        f"![Intervals of {verdict.claim.name}]({figure})",
        _cost(verdict, scale),
    ]


def _not_run(scales: Sequence[Scale]) -> str:
    """Which claims have no verdict at which scale, why, and the command that trains what is missing."""
    lines = []
    for verdicts in zip(*(scale.verdicts for scale in scales), strict=True):
        claim = verdicts[0].claim
        reasons = {
            f"`{scale.name}`": "" if verdict.compared else _why_not_run(verdict)
            for scale, verdict in zip(scales, verdicts, strict=True)
        }
        if any(reasons.values()):
            lines.append({"Claim": f"[{claim.name}](#{claim.name})", **reasons})
    if not lines:
        return ""
    text = "`python scripts/sweep.py <claim> scale=<scale>` trains what is missing. Passes are those of all runs."
    return "\n\n".join(["## Not run", text, _table(lines)])


def _why_not_run(verdict: Verdict) -> str:
    diverged = f", {verdict.diverged} diverged" if verdict.diverged else ""
    passes = f"; {_passes(verdict):,.0f} passes" if verdict.claim.runs else ""
    return f"{verdict.why_not_run}{diverged}{passes}"


def _cost(verdict: Verdict, scale: Scale) -> str:
    """Which runs the verdict rests on, what they took, and the command that trains them."""
    runs, claim = verdict.claim.runs, verdict.claim
    seconds = sum(scale.outcomes[run.record.id].summary.get("train_seconds", 0.0) for run in runs)
    return (
        f"Rows of `configs/tables/{claim.content.table}.yaml`: {len(runs)} runs of {_passes(verdict):,.0f} passes in "
        f"all, which took {seconds / 3600:.2f} hours of training. `python scripts/sweep.py {claim.name} "
        f"scale={scale.name}` trains them; with `--dry-run` it lists them."
    )


def _passes(verdict: Verdict) -> float:
    return sum(run.spec.expected_passes for run in verdict.claim.runs)


def _comparisons(compared: Sequence[Compared], gap: tuple[str, str]) -> str:
    """A table of the comparisons, each followed by the networks and data sets alone."""
    lines = []
    for one in compared:
        margin = ""
        if one.margin is not None and one.comparison.margin is not None:
            margin = f"{one.margin:.3g} ({one.comparison.margin:.0%} of {gap[0]} to {gap[1]})"
        lines.append(
            {
                "a": side(one.comparison.a),
                "b": side(one.comparison.b),
                "Expected": SIGNS[one.comparison.expect],
                "Metric": METRICS[one.metric],
                "a - b": f"{one.difference.mean:+.3g}",
                "95 % interval": f"{one.difference.low:+.3g} to {one.difference.high:+.3g}",
                "Margin": margin,
                "p": f"{one.supports.t:.2g}",
                "p, sign-flip": f"{one.supports.flip:.2g}",
                "p of the opposite": f"{one.opposes.t:.2g}",
            }
        )
        if len(one.places) > 1:
            lines += [
                {
                    "a": f"on {name}",
                    "a - b": f"{place.mean:+.3g}",
                    "95 % interval": f"{place.low:+.3g} to {place.high:+.3g}",
                }
                for name, place in one.places.items()
            ]
    return _table(lines)


def _table(lines: Sequence[Mapping[str, str]]) -> str:
    shown = pd.DataFrame(lines).fillna("")
    shown = shown.loc[:, (shown != "").any()].replace(r"\|", r"\\|", regex=True)
    return shown.to_markdown(index=False, disable_numparse=True)
