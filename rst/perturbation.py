"""The perturbation of a sharp step: from θ to θ + ε and back, norms of gradients, and which parameters are moved."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rst.guards import world_size

EPSILON = 1e-12
"""Added to every norm before a division, so that a zero gradient gives a zero perturbation and not NaN."""

Perturb = Callable[[list[Tensor], list[Tensor], list[Tensor], float], None]
"""``perturb(out, weights, gradients, rho)`` writes ε into ``out``: see `rst.variants.Variant.perturb`."""


def norm(vector: Sequence[Tensor]) -> Tensor:
    """The 2-norm of all tensors together, as one long vector: a scalar of float32, or of a wider type among theirs."""
    precision = reduce(torch.promote_types, {tensor.dtype for tensor in vector}, torch.float32)
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(vector), 2, precision)))


def dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """The inner product of two lists of tensors of equal shapes, each as one long vector: a scalar like `norm`."""
    precision = reduce(torch.promote_types, {tensor.dtype for tensor in a}, torch.float32)
    return torch.stack([(x * y).sum(dtype=precision) for x, y in zip(a, b, strict=True)]).sum()


@contextmanager
@torch.no_grad()
def perturbed(parameters: list[Tensor], perturb: Perturb, rho: float) -> Iterator[None]:
    """Inside, the parameters hold θ + ε, with ε made from ``.grad``; afterwards θ, bit for bit and at the same address.

    SAM's ε is ρ g/‖g‖ (Algorithm 1, line 8). Parameters without a gradient are not moved. Elements of ε that are NaN
    or infinite count as 0. The only memory of the size of the parameters is one copy of θ, plus what ``perturb`` takes
    for itself; nothing here waits for the device. Raises RuntimeError where no parameter has a gradient.
    """
    parameters = [p for p in parameters if p.grad is not None]
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        raise RuntimeError("the clean pass left no gradient: call (weight * loss).backward() in every pass.")
    saved = [p.clone() for p in parameters]
    try:
        perturb(parameters, saved, gradients, rho)
        for epsilon in parameters:
            epsilon.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)  # an infinite gradient over its infinite norm is NaN
        torch._foreach_add_(parameters, saved)
        # Autocast caches its low-precision copies of the weights, which have just changed.
        torch.clear_autocast_cache()
        yield
    finally:
        torch._foreach_copy_(parameters, saved)
        torch.clear_autocast_cache()


def trainable_parameters(model: nn.Module) -> list[Tensor]:
    """All parameters that require a gradient.

    Raises ValueError where they are sharded over ranks (DTensor) or lie on several devices: the norm of the gradient
    would be that of one shard.
    """
    parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    if any(hasattr(p, "device_mesh") for p in parameters):
        raise ValueError("parameters are sharded over ranks (DTensor): use DistributedDataParallel.")
    if len({p.device for p in parameters}) > 1:
        raise ValueError("parameters are on several devices: put the whole model on one.")
    return parameters


def check_wrapper(model: nn.Module) -> None:
    """Raise ValueError for a model that FSDP shards; warn where there are several ranks but no DDP wrapper."""
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise ValueError("parameters are sharded over ranks (FSDP): use DistributedDataParallel.")
    if world_size() > 1 and not any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        warnings.warn(
            f"there are {world_size()} ranks, but the model is not wrapped, so that nothing averages its gradients: "
            "give RST the DistributedDataParallel module.",
            stacklevel=3,
        )
