"""Training of one run: the step, the loop around it, its checkpoints and its evaluation."""

from rst.experiments.training.loop import train
from rst.experiments.training.score import score
from rst.experiments.training.signals import Interrupted

__all__ = ["Interrupted", "score", "train"]
