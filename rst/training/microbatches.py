"""Several perturbations a step on one device, as the same number of devices would make them."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn


@torch.no_grad()
def micro_batches(model: nn.Module, images: Tensor, labels: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Parts of ``size`` images, and whether each is the last: of its step.

    Each part meets the buffers that the step began with, and afterwards they hold the mean of what the parts made of
    them. So normalisation statistics get one update a step, as where they are averaged over devices.
    """
    parts = list(zip(images.split(size), labels.split(size), strict=True))
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()] if len(parts) > 1 else []
    counters = [buffer for buffer in model.buffers() if not buffer.is_floating_point()] if len(parts) > 1 else []
    before = [buffer.clone() for buffer in buffers + counters]
    change = [torch.zeros_like(buffer) for buffer in buffers]  # and not of the sum, so that constants stay exact
    for i, (x, y) in enumerate(parts):
        last = i == len(parts) - 1
        yield x, y, last
        if buffers:
            begun = before[: len(buffers)]
            torch._foreach_add_(change, torch._foreach_sub(buffers, begun), alpha=1 / len(parts))
            torch._foreach_copy_(buffers, torch._foreach_add(begun, change) if last else begun)
        if counters and not last:
            torch._foreach_copy_(counters, before[len(buffers) :])
