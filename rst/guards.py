"""What a step takes for granted, and what its passes leave alone: parameters, gradients, buffers, random numbers."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

RandomStates = list[tuple[torch.device, Tensor]]


def whole_parameters(model: nn.Module) -> list[Tensor]:
    """The trainable parameters, which must be whole and on one device, or ‖g‖ would be that of a part of them."""
    parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    if any(hasattr(p, "device_mesh") for p in parameters):
        raise ValueError("parameters are sharded over ranks (DTensor): use DistributedDataParallel.")
    if len({p.device for p in parameters}) > 1:
        raise ValueError("parameters are on several devices: put the whole model on one.")
    return parameters


def check_wrapper(model: nn.Module) -> None:
    """Refuse what shards parameters, and warn where nothing averages gradients."""
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise ValueError("parameters are sharded over ranks (FSDP): use DistributedDataParallel.")
    distributed = torch.distributed
    several = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
    if several and not any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        warnings.warn(
            "there are several ranks, but the model is not wrapped: give RST the DistributedDataParallel module.",
            stacklevel=3,
        )


@contextmanager
def gradient_sync(model: nn.Module, enabled: bool) -> Iterator[None]:
    """Whether `DistributedDataParallel` averages gradients over the ranks; round forward and backward alike."""
    with ExitStack() as stack:
        if not enabled:
            for module in model.modules():
                if isinstance(module, DistributedDataParallel):
                    stack.enter_context(module.no_sync())
        yield


@contextmanager
def gradients_set_aside(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Zero gradients inside; on leaving, what was there before is added to what the body left."""
    # Copies, not the tensors themselves: under DDP a gradient can be a view of a bucket that the body overwrites.
    before = {p: p.grad.clone() for p in parameters if p.grad is not None}
    for p in before:
        p.grad.zero_()  # type: ignore[union-attr]
    try:
        yield
    finally:
        for p, gradient in before.items():
            # Read anew: the body may have cleared it, and a double backward binds a new tensor.
            p.grad = gradient if p.grad is None else p.grad.add_(gradient)


@contextmanager
def kept_buffers(model: nn.Module) -> Iterator[None]:
    """Every buffer of the model is afterwards as it was before: in value, and the same tensor also where rebound."""
    with torch.no_grad():
        kept = [
            (module, name, buffer, buffer.clone())
            for module in model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
    try:
        yield
    finally:
        with torch.no_grad():
            if kept:
                torch._foreach_copy_([buffer for _, _, buffer, _ in kept], [value for *_, value in kept])
            for module, name, buffer, _ in kept:
                module._buffers[name] = buffer


def random_states(devices: Iterable[torch.device]) -> RandomStates:
    """The state of torch's global generators: the CPU's, and that of each accelerator among the devices."""
    accelerators = sorted({device for device in devices if device.type != "cpu"}, key=str)
    states = [(torch.device("cpu"), torch.get_rng_state())]
    return states + [(device, torch.get_device_module(device).get_rng_state(device)) for device in accelerators]


def set_random_states(states: RandomStates) -> None:
    """Put torch's global generators back to `random_states`."""
    for device, state in states:
        if device.type == "cpu":
            torch.set_rng_state(state)
        else:
            torch.get_device_module(device).set_rng_state(state, device)


@contextmanager
def replayed_random_numbers(states: RandomStates) -> Iterator[None]:
    """The random numbers that were drawn from these states on, once more; the generators stand as before afterwards."""
    now = random_states(device for device, _ in states)
    set_random_states(states)
    try:
        yield
    finally:
        set_random_states(now)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode; afterwards each in the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def average_gradients(model: nn.Module) -> None:
    """Average gradients over the ranks, as `DistributedDataParallel` does by itself.

    One that is missing on some ranks counts as zero, one that is missing on all stays missing.
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
    """The sum of each tensor over the ranks, in place and in one message a precision; without ranks, nothing."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
        own = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.flatten() for tensor in own])
        distributed.all_reduce(flat, group=group)
        parts = flat.split([tensor.numel() for tensor in own])
        torch._foreach_copy_(own, [part.view_as(tensor) for part, tensor in zip(parts, own, strict=True)])
