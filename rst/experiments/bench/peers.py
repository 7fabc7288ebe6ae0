"""What people use without this project: SAM by hand, SAM of pytorch_optimizer, torchvision's input pipeline."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from rst.experiments.errors import InputError


class TextbookSAM(Optimizer):
    """SAM as most people write it: loops over the parameters, as in davda54/sam, whose options these are."""

    def __init__(self, params: Any, base_optimizer: Callable[..., Optimizer], rho: float, adaptive: bool) -> None:
        super().__init__(params, {"rho": rho, "adaptive": adaptive})
        self.base_optimizer = base_optimizer(self.param_groups)

    @torch.no_grad()
    def first_step(self, zero_grad: bool) -> None:
        """From θ to θ + ρ g/‖g‖; with ``adaptive`` ASAM's ε, of θ² g."""
        [group] = self.param_groups
        adaptive, parameters = group["adaptive"], [p for p in group["params"] if p.grad is not None]
        norm = torch.stack([((p.abs() if adaptive else 1.0) * p.grad).norm() for p in parameters]).norm()
        scale = group["rho"] / (norm + 1e-12)
        for p in parameters:
            self.state[p]["old_p"] = p.data.clone()
            p.add_((p.pow(2) if adaptive else 1.0) * p.grad * scale)
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad: bool) -> None:
        """Back to θ, and a step of the base optimizer."""
        for p in self.param_groups[0]["params"]:
            if p.grad is not None:
                p.data = self.state[p]["old_p"]
        self.base_optimizer.step()
        if zero_grad:
            self.zero_grad()


def pytorch_optimizer_sam() -> Callable[..., Any]:
    """SAM of pytorch_optimizer.

    Raises:
        InputError: it is not installed.
    """
    try:
        from pytorch_optimizer import SAM
    except ImportError as error:
        raise InputError(
            "this part is measured beside pytorch_optimizer, which is missing: pip install -e '.[experiments,dev]'."
        ) from error
    return SAM


class PilImages(Dataset[tuple[Tensor, int]]):
    """PIL images, which torchvision's data sets hold too, with flip, reflect-padded crop and normalisation."""

    def __init__(self, images: Tensor, labels: Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
        from torchvision import transforms
        from torchvision.transforms.functional import to_pil_image

        self.images, self.labels = [to_pil_image(image) for image in images], labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomHorizontalFlip(),
                transforms.RandomCrop(images.shape[-1], padding=4, padding_mode="reflect"),
                transforms.ToTensor(),
                transforms.Normalize(mean, std),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def data_loader(images: PilImages, batch_size: int) -> DataLoader[tuple[Tensor, int]]:
    """Shuffled whole batches, by two workers that stay between the epochs."""
    return DataLoader(images, batch_size, shuffle=True, num_workers=2, drop_last=True, persistent_workers=True)
