"""What is counted while training."""

from typing import Any

import torch
from torch import Tensor


class EpochSums:
    """Sums over the steps of an epoch; those of losses stay on the device, so that no step waits for them."""

    def __init__(self, device: torch.device) -> None:
        self.images = 0
        self.sharp_steps = 0
        # loss and wrong: over the clean passes of all steps, an image each. The other two: over the sharp steps.
        self.losses = {name: torch.zeros((), device=device) for name in ("loss", "wrong", "clean", "perturbed")}

    def clean_pass(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Count the clean pass of ``len(labels)`` images; soft labels by their largest class."""
        classes = labels if labels.ndim == 1 else labels.argmax(1)
        self.images += len(labels)
        self.losses["loss"] += loss * len(labels)
        self.losses["wrong"] += (logits.argmax(1) != classes).sum()

    def perturbed_pass(self, clean: Tensor, perturbed: Tensor, share: float) -> None:
        """Count the two losses of a perturbation that covers this share of its step."""
        self.losses["clean"] += clean * share
        self.losses["perturbed"] += perturbed * share

    def means(self) -> dict[str, float | None]:
        """``train_loss``, ``train_error`` (percent) and, over the sharp steps, the clean and the perturbed loss."""
        sums = {name: float(value) for name, value in self.losses.items()}
        clean, perturbed = ((sums[name] / self.sharp_steps if self.sharp_steps else None) for name in list(sums)[2:])
        return {
            "train_loss": sums["loss"] / self.images,
            "train_error": 100 * sums["wrong"] / self.images,
            "clean_loss": clean,
            "perturbed_loss": perturbed,
            "loss_gap": perturbed - clean if clean is not None and perturbed is not None else None,
        }

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint of an epoch that is not over."""
        return {"images": self.images, "sharp_steps": self.sharp_steps, "losses": self.losses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the sums of `state_dict`."""
        self.images, self.sharp_steps = state["images"], state["sharp_steps"]
        for name, value in state["losses"].items():
            self.losses[name].copy_(value)
