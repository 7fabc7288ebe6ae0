"""Scores of a network on a split."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rst.guards import evaluation_mode


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], num_classes: int) -> dict[str, float]:
    """Over all images: ``loss``, ``error`` (percent) and, from 100 classes on, ``top5_error`` (percent)."""
    k = 5 if num_classes >= 100 else 1
    images, losses, ranks = 0, [], []
    with evaluation_mode(model):
        for x, y in batches:
            logits = model(x).float()
            losses.append(F.cross_entropy(logits, y, reduction="sum").double())
            # Column i: how many labels were their image's i-th guess.
            ranks.append((logits.topk(k).indices == y[:, None]).sum(0))
            images += len(y)
    right = torch.stack(ranks).sum(0).cumsum(0).tolist()
    scores = {"loss": float(torch.stack(losses).sum()) / images, "error": 100 * (1 - right[0] / images)}
    return scores | ({"top5_error": 100 * (1 - right[4] / images)} if k == 5 else {})
