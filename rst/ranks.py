"""Several ranks: their number, sums over them, and which wrappers of a model go with sharp steps."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def world_size() -> int:
    """Number of ranks of the default process group; 1 where there is none."""
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def sum_over_ranks(tensors: Sequence[Tensor], group: Any = None) -> None:
    """Replace each tensor by its sum over the ranks, with one all-reduce for each dtype; without ranks do nothing."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
        same_type = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.flatten() for tensor in same_type])
        distributed.all_reduce(flat, group=group)
        sums = flat.split([tensor.numel() for tensor in same_type])
        torch._foreach_copy_(same_type, [total.view_as(tensor) for total, tensor in zip(sums, same_type, strict=True)])


def is_fully_sharded(module: nn.Module) -> bool:
    """Whether ``torch.distributed.fsdp.fully_shard`` has sharded the module."""
    return any(base.__name__ == "FSDPModule" for base in type(module).__mro__)


def check_wrappers(modules: Sequence[nn.Module], own_gradient: bool) -> None:
    """Refuse a wrapper of the model that does not go with sharp steps; warn where several ranks have none.

    Args:
        modules: all modules of the model.
        own_gradient: whether sharp steps perturb each rank along its own gradient.

    Raises ValueError with what to write instead.
    """
    wrappers = [module for module in modules if isinstance(module, DistributedDataParallel)]
    is_sharded = any(is_fully_sharded(module) for module in modules)
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in modules):
        raise ValueError("FullyShardedDataParallel runs no second forward pass: shard the model with fully_shard.")
    if any(isinstance(inner, DistributedDataParallel) for outer in wrappers for inner in list(outer.modules())[1:]):
        raise ValueError("DistributedDataParallel wraps a model that it has wrapped already: wrap it once.")
    if is_sharded and own_gradient:
        raise ValueError(
            "with fully_shard gradients arrive averaged over the ranks: give sync_perturbation=True, or use "
            "DistributedDataParallel where the variant refuses that."
        )
    if own_gradient and any(wrapper.static_graph for wrapper in wrappers):
        raise ValueError(
            "DistributedDataParallel(static_graph=True) averages the gradients of every pass: leave it out, or "
            "give sync_perturbation=True."
        )
    if world_size() > 1 and not wrappers and not is_sharded:
        warnings.warn(
            f"there are {world_size()} ranks, but the model is not wrapped, so that nothing averages its gradients: "
            "give RST the DistributedDataParallel module.",
            stacklevel=7,  # The line that makes the `RST`, or asks for the passes.
        )
