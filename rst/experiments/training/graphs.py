"""A step's passes as a CUDA graph: hundreds of small kernels, which the GPU starts without waiting for Python."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import rst
from rst.experiments.errors import InputError
from rst.experiments.training.metrics import EpochSums
from rst.experiments.training.state import TrainingState

Passes = Callable[[Tensor, Tensor, rst.RST, EpochSums], None]
"""Leaves the gradient of images and labels in ``.grad``, by the method, and adds the losses to the sums."""


class CapturedPasses:
    """The passes of all steps of one kind, plain or sharp: captured once, without running, and replayed for each batch.

    A graph keeps the addresses of what it reads and writes. Weights, buffers and loss scale are those of the run; the
    batch, the gradient and the sums of the step are the graph's own. So is the method, whose gate is always open or
    always closed: that of the run counts the steps.

    Args:
        passes: what to capture. It has run on such a batch before, so that its kernels are chosen.
        state: of the run.
        method: of one kind of step.
        images: a batch, as large as all others: [B, C, H, W].
        labels: of the batch, [B], or soft targets [B, K].
        pool: the handle of memory that graphs share which never run at the same time.

    Raises:
        InputError: the network does something that cannot be captured, such as reading a number from the GPU.
    """

    def __init__(
        self,
        passes: Passes,
        state: TrainingState,
        method: rst.RST,
        images: Tensor,
        labels: Tensor,
        pool: Any,
    ) -> None:
        self.state, self.method, self.sums = state, method, EpochSums(images.device)
        self.images, self.labels = images.clone(), labels.clone()
        self.graph = torch.cuda.CUDAGraph()
        state.optimizer.zero_grad()  # The first pass then makes the gradient, at an address of the graph's own.
        state.scaler.scale(torch.zeros((), device=images.device))  # Makes the scale, which a graph would make anew.
        try:
            # Threads that load images may allocate meanwhile.
            with torch.cuda.graph(self.graph, pool, capture_error_mode="thread_local"):
                torch._foreach_zero_(list(self.sums.losses.values()))
                passes(self.images, self.labels, method, self.sums)
        except RuntimeError as error:
            raise InputError(
                f"this network cannot be captured as a CUDA graph ({str(error).splitlines()[0]}): write "
                "cuda_graphs=false."
            ) from error
        self.gradients = [(p, p.grad) for p in state.model.parameters()]
        state.optimizer.zero_grad()

    def replay(self, images: Tensor, labels: Tensor) -> None:
        """Run the passes of step t of the run on its batch."""
        self.images.copy_(images)
        self.labels.copy_(labels)
        self.graph.replay()
        for parameter, gradient in self.gradients:
            parameter.grad = gradient
        self.state.sums.add(self.sums)
        self.state.method.count_replayed_step()
