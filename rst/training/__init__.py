"""Training: the loop, its checkpoint, its evaluation; one run or many."""

from rst.training.loop import train
from rst.training.progress import Interrupted
from rst.training.runner import run
from rst.training.score import score

__all__ = ["Interrupted", "run", "score", "train"]
