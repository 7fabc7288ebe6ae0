"""How good a network is on a split of the data."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rst.experiments.training.ranks import ALONE, World, averaged_buffers
from rst.guards import evaluation_mode


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], num_classes: int, world: World = ALONE
) -> dict[str, float]:
    """The scores of a network: mean ``loss``, ``error`` [percent] and, from 100 classes on, ``top5_error`` [percent].

    ``batches`` are this rank's share of the images, which may be empty. The scores are those of all images, computed
    with the buffers averaged over the ranks.
    """
    k = 5 if num_classes >= 100 else 1
    images, losses, guesses = 0, [], []
    with evaluation_mode(model), averaged_buffers(model, world):
        for x, y in batches:
            logits = model(x).float()
            losses.append(F.cross_entropy(logits, y, reduction="sum").double())
            # Entry i counts the images whose label has the (i + 1)-th largest logit.
            guesses.append((logits.topk(k).indices == y[:, None]).sum(0))
            images += len(y)
    loss = float(torch.stack(losses).sum()) if losses else 0.0
    right = torch.stack(guesses).sum(0).cumsum(0).tolist() if guesses else [0] * k
    total, loss, *right = world.sum(images, loss, *right)
    scores = {"loss": loss / total, "error": 100 * (1 - right[0] / total)}
    return scores | ({"top5_error": 100 * (1 - right[4] / total)} if k == 5 else {})
