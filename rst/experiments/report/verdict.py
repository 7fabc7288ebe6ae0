"""What a page opens with: the verdict on each claim at its scale."""

from dataclasses import dataclass


@dataclass(frozen=True)
class VerdictLine:
    """The outcome of one claim."""

    claim: str
    """The claim, in a sentence of plain text."""
    outcome: str
    """"holds", "fails", "undecided" or "not run"."""
    evidence: str = ""
    """Where the evidence stands: an address relative to the folder of the scale; empty for none."""
