"""What is counted while an epoch is trained."""

from typing import Any

import torch
from torch import Tensor

from rst.experiments.training.ranks import ALONE, World


class EpochSums:
    """Sums over the steps of an epoch. Sums of losses stay on the device, so that no step waits for them.

    ``loss`` and ``wrong`` are sums over images, of the clean passes of all steps. ``clean`` and ``perturbed`` are sums
    over the sharp steps that had a perturbed pass, of the mean loss of each pass.
    """

    def __init__(self, device: torch.device) -> None:
        self.images = 0
        self.sharp_steps = 0
        self.perturbed_steps = 0.0  # Each micro-batch counts as its share of the step.
        self.losses = {name: torch.zeros((), device=device) for name in ("loss", "wrong", "clean", "perturbed")}

    def add_clean_pass(self, losses: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add the clean pass of n images: losses [n], logits [n, K], and labels [n] or, as soft targets, [n, K].

        The largest class of a soft target counts as its label.
        """
        classes = labels if labels.ndim == 1 else labels.argmax(1)
        self.images += len(labels)
        self.losses["loss"] += losses.sum()
        self.losses["wrong"] += (logits.argmax(1) != classes).sum()

    def add_perturbed_pass(self, clean: Tensor, perturbed: Tensor, share: float) -> None:
        """Add the mean losses of both passes of a micro-batch that is this share, in (0, 1], of a step."""
        self.perturbed_steps += share
        self.losses["clean"] += clean * share
        self.losses["perturbed"] += perturbed * share

    def add(self, step: "EpochSums") -> None:
        """Add the sums of a step's passes, which counted for themselves."""
        self.images += step.images
        self.perturbed_steps += step.perturbed_steps
        torch._foreach_add_(list(self.losses.values()), list(step.losses.values()))

    def means(self, world: World = ALONE) -> dict[str, float | None]:
        """``train_loss``, ``train_error`` [percent] and, over the perturbed steps, both losses and their gap.

        They are those of this rank, or of all ranks of ``world``.
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
        """The sums so far, for the checkpoint of an epoch that is not over."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the sums of `state_dict`."""
        losses = {name: value.to(self.losses[name].device) for name, value in state["losses"].items()}
        vars(self).update(state, losses=losses)
