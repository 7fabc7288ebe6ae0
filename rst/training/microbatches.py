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
    if len(parts) == 1:
        yield images, labels, True
        return
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    counters = [buffer for buffer in model.buffers() if not buffer.is_floating_point()]
    before, counted = [b.clone() for b in buffers], [b.clone() for b in counters]
    # Mean change, not mean value: what no part changes stays as it is to the bit.
    change = [torch.zeros_like(b) for b in buffers]
    for i, (x, y) in enumerate(parts):
        last = i == len(parts) - 1
        yield x, y, last
        if buffers:
            torch._foreach_add_(change, torch._foreach_sub(buffers, before), alpha=1 / len(parts))
            torch._foreach_copy_(buffers, before)
        if counters and not last:
            torch._foreach_copy_(counters, counted)
    if buffers:
        torch._foreach_add_(buffers, change)
