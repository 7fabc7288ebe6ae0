"""``configs/claims.yaml``: what it may say.

A claim of the paper is data: the words, the rows that are compared, which way the comparison should go, the margin of
"as good as", and the number of seeds. All of it is fixed before the runs, and the verdict is computed from them.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from rst.experiments.compose import CONFIGS
from rst.experiments.keys import Part, wanted
from rst.experiments.tables.checked_file import CheckedFile, Text, Texts
from rst.experiments.tables.table_file import MOST_SEEDS

FILE = CONFIGS / "claims.yaml"


def _weights(value: Any) -> Any:
    """One row, or a list of rows, as rows with equal weights."""
    rows = [value] if isinstance(value, str) else value
    return dict.fromkeys(rows, 1) if isinstance(rows, list) and all(isinstance(row, str) for row in rows) else value


Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Side = Annotated[
    dict[Text, Weight],
    Field(min_length=1),
    BeforeValidator(_weights),
    wanted("a row, a list of rows, or rows with weights above 0, {row: weight}"),
]
"""A weighted mean of rows: weights by label, of any sum."""
Metric = Annotated[
    Literal["test_error", "train_seconds", "gradient_norm", "sharpness", "lambda_max"],
    wanted("test_error, train_seconds, gradient_norm, sharpness or lambda_max"),
]
"""A key of run summaries. Of each of them, less is better."""
Expect = Annotated[Literal["lower", "equal", "not_higher"], wanted("lower, equal or not_higher")]
Margin = Annotated[float, Field(strict=True, gt=0, lt=1), wanted("a number between 0 and 1")]
Seeds = Annotated[int, Field(strict=True, ge=2, le=MOST_SEEDS), wanted(f"an integer from 2 to {MOST_SEEDS}")]


class Comparison(Part):
    """A contrast of two weighted means of rows, and which way it should go."""

    a: Side
    b: Side
    expect: Expect
    """``lower``: a < b; ``equal``: |a - b| < margin; ``not_higher``: a - b < margin."""
    margin: Margin | None = None
    """A share of the difference between the rows of the claim's ``gap``; ``lower`` has none, the others need one."""
    metric: Metric | None = None
    """Another metric than the claim's."""

    @model_validator(mode="after")
    def _margin_where_it_is_needed(self) -> "Comparison":
        if (self.margin is None) != (self.expect == "lower"):
            fix = "write margin: <a share of the gap>" if self.margin is None else "leave margin out"
            raise PydanticCustomError("margin", "expect: {expect}: {fix}", {"expect": self.expect, "fix": fix})
        return self


class ClaimContent(Part):
    """One claim of the paper."""

    section: Text
    quote: Text
    """The paper's words; "..." where some are left out."""
    claim: Text
    """What is tested, in one sentence."""
    table: Text
    """The file of ``configs/tables`` whose rows are compared."""
    group: Text | None = None
    """Of which group the rows are, beside the rows without a group; where labels of several groups are alike."""
    networks: Texts | None = None
    """Which networks of the table; None: all that have the rows."""
    datasets: Texts | None = None
    """Which data sets of the table; None: all."""
    metric: Metric = "test_error"
    gap: Annotated[tuple[Text, Text], wanted("a list of two rows, as in [SGD, SAM]")] = ("SGD", "SAM")
    """The two rows whose difference is the unit of margins, and of the figure."""
    comparisons: Annotated[tuple[Comparison, ...], Field(min_length=1)]

    @property
    def rows(self) -> list[str]:
        """The labels of all rows that the claim needs, each once: those compared, and those of ``gap``."""
        compared = [row for comparison in self.comparisons for side in (comparison.a, comparison.b) for row in side]
        return list(dict.fromkeys([*compared, *self.gap]))


class Claims(Part):
    """All that the file says."""

    seeds: Annotated[dict[Text, Seeds], Field(min_length=1)]
    """The number of seeds of every claim, by scale."""
    claims: dict[Text, ClaimContent]


def read_claims() -> CheckedFile[Claims]:
    """``configs/claims.yaml``, checked.

    Raises:
        InputError: the file is wrong. The sentence has the file, the line and the key.
    """
    return CheckedFile(FILE, Claims, "the file of claims has keys, seeds and claims")
