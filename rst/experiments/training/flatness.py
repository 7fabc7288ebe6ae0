"""``measure_sharpness``: how sharp the minimum is that a run has found."""

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rst
from rst.experiments.data.run_data import RunData
from rst.experiments.errors import InputError, one_sentence
from rst.experiments.runs.record import SHARPNESS_KEYS
from rst.experiments.spec import RunSpec
from rst.guards import evaluation_mode

IMAGES = 2048
"""The first so many training images are measured, or all where there are fewer. Up to a hundred products with the
Hessian are taken, each of which computes what two passes of training do or more: over all of CIFAR they would be worth
200 epochs, as many as its recipe has, and over these 8."""

BATCH = 32
"""Images in a pass. A product keeps several times the memory that a training pass keeps for as many images, and a
training pass has 64 images or more in every recipe."""


def flatness(spec: RunSpec, model: nn.Module, data: RunData) -> dict[str, float | bool | None]:
    """What the summary of a run gets of `rst.sharpness`: `SHARPNESS_KEYS`, and whether ``lambda_max`` has converged.

    L is the mean cross-entropy, without decay, of the first `IMAGES` training images, with the labels that the run has
    and without augmentation; the network is in evaluation mode and computes without autocast; ρ is ``variant.rho``.
    What cannot be measured is None, with a warning, since the other results of the run must not be lost with it.
    """

    def losses(batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        if spec.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return F.cross_entropy(model(images).float(), labels, reduction="none")

    try:
        batches = list(data.training_batches(IMAGES, BATCH))
        with evaluation_mode(model):
            found = rst.sharpness(model, losses, batches, spec.variant.rho)
    except (InputError, ValueError, RuntimeError) as error:
        warnings.warn(f"the sharpness of the run is not known: {one_sentence(error)}", stacklevel=2)
        return dict.fromkeys((*SHARPNESS_KEYS, "lambda_max_converged"))
    return {key: getattr(found, key) for key in SHARPNESS_KEYS} | {"lambda_max_converged": found.converged}
