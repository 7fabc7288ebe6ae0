"""What the passes of a step must leave alone: gradients, buffers, random numbers, modules' modes, DDP's averaging."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

RngStates = list[tuple[torch.device, Tensor]]
"""States of random number generators, each with the device of its generator."""

# Gradients and buffers ------------------------------------------------------------------------------------------------


@contextmanager
def fresh_gradients(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Inside, gradients start from zero; afterwards, those from before are added to what the body left in ``.grad``."""
    # Copies, not the tensors themselves: under DDP a gradient can be a view of a bucket that the body overwrites.
    before = {p: p.grad.clone() for p in parameters if p.grad is not None}
    for p in before:
        p.grad.zero_()  # type: ignore[union-attr]
    try:
        yield
    finally:
        for p, gradient in before.items():
            # p.grad is looked up again: the body may have set it to None, and a backward pass with
            # create_graph=True replaces the tensor instead of adding to it.
            p.grad = gradient if p.grad is None else p.grad.add_(gradient)


@contextmanager
def preserved_buffers(model: nn.Module) -> Iterator[None]:
    """Afterwards every buffer of the model has its value from before, and is the tensor from before where rebound."""
    with torch.no_grad():
        preserved = [
            (module, name, buffer, buffer.clone())
            for module in model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
    try:
        yield
    finally:
        with torch.no_grad():
            if preserved:
                torch._foreach_copy_([buffer for _, _, buffer, _ in preserved], [value for *_, value in preserved])
            for module, name, buffer, _ in preserved:
                module._buffers[name] = buffer


# Random numbers and modes ---------------------------------------------------------------------------------------------


def rng_states(devices: Iterable[torch.device]) -> RngStates:
    """The states of torch's global generators: of the CPU, and of each accelerator among the devices."""
    accelerators = sorted({device for device in devices if device.type != "cpu"}, key=str)
    states = [(torch.device("cpu"), torch.get_rng_state())]
    return states + [(device, torch.get_device_module(device).get_rng_state(device)) for device in accelerators]


def set_rng_states(states: RngStates) -> None:
    """Set torch's global generators to states that `rng_states` returned."""
    for device, state in states:
        if device.type == "cpu":
            torch.set_rng_state(state)
        else:
            torch.get_device_module(device).set_rng_state(state, device)


@contextmanager
def replayed_rng(states: RngStates) -> Iterator[None]:
    """Inside, torch's global generators start from these states; afterwards they are where they were before."""
    now = rng_states(device for device, _ in states)
    set_rng_states(states)
    try:
        yield
    finally:
        set_rng_states(now)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Inside, every module is in evaluation mode; afterwards each one is in the mode it had before."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


# Several ranks --------------------------------------------------------------------------------------------------------


def world_size() -> int:
    """Number of ranks of the default process group; 1 where there is none."""
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


@contextmanager
def gradient_sync(model: nn.Module, enabled: bool) -> Iterator[None]:
    """With ``enabled=False``, `DistributedDataParallel` averages no gradient of a pass that runs inside.

    DDP decides this in the forward pass, so that forward and backward must both run inside.
    """
    with ExitStack() as stack:
        if not enabled:
            for module in model.modules():
                if isinstance(module, DistributedDataParallel):
                    stack.enter_context(module.no_sync())
        yield


def average_gradients(model: nn.Module) -> None:
    """Average ``.grad`` over the ranks, for a model whose passes ran without DDP's own averaging.

    A gradient that is None on some ranks counts as zero there; one that is None on all ranks stays None.
    """
    for module in model.modules():
        if isinstance(module, DistributedDataParallel):
            parameters = [p for p in module.parameters() if p.requires_grad]
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            present = gradients[0].new_tensor([p.grad is not None for p in parameters])
            sum_over_ranks([*gradients, present], module.process_group)
            torch._foreach_div_(gradients, torch.distributed.get_world_size(module.process_group))
            if any(p.grad is None for p in parameters):
                for p, gradient, ranks in zip(parameters, gradients, present.tolist(), strict=True):
                    p.grad = gradient if ranks else None


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
