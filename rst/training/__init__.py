"""Training: the loop, its checkpoint, its evaluation; one run or a table of them."""

from rst.training.loop import Interrupted, train
from rst.training.runner import run_table
from rst.training.score import score

__all__ = ["Interrupted", "run_table", "score", "train"]
