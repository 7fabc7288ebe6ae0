"""What a page opens with: the verdict on each claim at its scale."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

PLURALS = {"holds": "hold", "fails": "fail"}
"""What several claims do that have a verdict; the other words stay as they are."""


@dataclass(frozen=True)
class VerdictLine:
    """The outcome of one claim."""

    claim: str
    """The claim, in a sentence of plain text."""
    outcome: str
    """"holds", "fails", "undecided" or "not run"."""
    evidence: str = ""
    """Where the evidence stands: an address relative to the folder of the scale; empty for none."""


def counted(verdicts: Sequence[VerdictLine]) -> list[tuple[str, str]]:
    """The outcomes, the most frequent first, each with its number in words: ("holds", "13 hold")."""
    counts = Counter(verdict.outcome for verdict in verdicts).most_common()
    return [(outcome, f"{n} {PLURALS.get(outcome, outcome) if n > 1 else outcome}") for outcome, n in counts]
