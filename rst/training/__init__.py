"""Training: the loop, its checkpoint, its evaluation."""

from rst.training.loop import Interrupted, train
from rst.training.score import score

__all__ = ["Interrupted", "score", "train"]
