"""What is counted while training."""

from typing import Any

import torch
from torch import Tensor

from rst.training.distributed import ALONE, World


class EpochSums:
    """Sums over the steps of an epoch; those of losses stay on the device, so that no step waits for them."""

    def __init__(self, device: torch.device) -> None:
        self.images = 0
        self.sharp_steps = 0
        self.perturbed_steps = 0.0  # sharp steps with a perturbed pass, in micro-batches' shares
        # loss and wrong: over the clean passes of all steps, an image each. The other two: over the perturbed steps.
        self.losses = {name: torch.zeros((), device=device) for name in ("loss", "wrong", "clean", "perturbed")}

    def clean_pass(self, losses: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Count the clean pass of some images, by the loss of each; soft labels by their largest class."""
        classes = labels if labels.ndim == 1 else labels.argmax(1)
        self.images += len(labels)
        self.losses["loss"] += losses.sum()
        self.losses["wrong"] += (logits.argmax(1) != classes).sum()

    def perturbed_pass(self, clean: Tensor, perturbed: Tensor, share: float) -> None:
        """Count the two mean losses of a perturbation that covers this share of its step."""
        self.perturbed_steps += share
        self.losses["clean"] += clean * share
        self.losses["perturbed"] += perturbed * share

    def means(self, world: World = ALONE) -> dict[str, float | None]:
        """``train_loss``, ``train_error`` (percent) and, over the perturbed steps, both losses and their gap.

        Those of this rank, or over all ranks of a world.
        """
        images, steps, *values = world.sum(self.images, self.perturbed_steps, *map(float, self.losses.values()))
        sums = dict(zip(self.losses, values, strict=True))
        clean, perturbed = (sums[name] / steps if steps else None for name in ("clean", "perturbed"))
        return {
            "train_loss": sums["loss"] / images,
            "train_error": 100 * sums["wrong"] / images,
            "clean_loss": clean,
            "perturbed_loss": perturbed,
            "loss_gap": perturbed - clean if clean is not None and perturbed is not None else None,
        }

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint of an epoch that is not over."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the sums of `state_dict`."""
        losses = {name: value.to(self.losses[name].device) for name, value in state["losses"].items()}
        vars(self).update(state, losses=losses)
