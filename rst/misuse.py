"""What a training loop can get wrong without an error of torch's that says so, each answered by one sentence."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from rst.variants import Closure


class ClosureCheck:
    """Checks what closures return, and once that they leave the backward pass to the method."""

    def __init__(self) -> None:
        self._looks_at_gradients = True  # In the first call only, since that takes time for every parameter.

    def checked(self, closure: Closure, parameters: Sequence[Tensor]) -> Closure:
        """The closure, which then raises ValueError where it is not one of those that `rst.RST.backward` takes.

        Args:
            closure: runs the forward pass and returns the loss.
            parameters: those whose ``.grad`` it must leave alone.
        """

        def call(*rows: Any) -> Tensor:
            before = [_stamp(p) for p in parameters] if self._looks_at_gradients else []
            loss: object = closure(*rows)
            if self._looks_at_gradients:
                if any(_stamp(p) not in (None, old) for p, old in zip(parameters, before, strict=True)):
                    raise ValueError("the closure has called backward(), as the method does: let it return the loss.")
                self._looks_at_gradients = False
            if not isinstance(loss, Tensor):
                raise ValueError(f"the closure must return the loss as a tensor, got {_named(loss)}.")
            if torch.is_grad_enabled() and not loss.requires_grad:
                raise ValueError(
                    "the closure returned a loss without a gradient: compute it from the output of the model, without "
                    "detach() and outside torch.no_grad()."
                )
            return loss

        return call


def _stamp(parameter: Tensor) -> tuple[int, int] | None:
    """What tells whether ``.grad`` was written to."""
    gradient = parameter.grad
    return None if gradient is None else (id(gradient), gradient._version)


def _named(loss: object) -> str:
    """The type of what is no loss, and what to return instead."""
    name = type(loss).__name__
    if isinstance(loss, Mapping):
        return f"{name}: return its 'loss'" if "loss" in loss else f"{name}: return the sum of its losses"
    if isinstance(loss, (list, tuple)):
        return f"{name}: return the loss alone, or the sum where all of these are losses"
    return f"{name}: end it with return loss" if loss is None else f"{name}: leave .item() out"


_open: dict[object, Sequence[Tensor]] = {}
"""The parameters of the models whose passes are under way."""


@contextmanager
def no_optimizer_step(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Inside, ``step()`` of an optimizer that has one of these parameters raises RuntimeError."""
    _watch_optimizers()
    token = object()
    _open[token] = parameters
    try:
        yield
    finally:
        del _open[token]


@cache
def _watch_optimizers() -> None:
    """Once and for good: another thread's optimizer may be going through the hooks of all optimizers."""
    register_optimizer_step_pre_hook(_refuse)


def _refuse(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for parameters in list(_open.values()):
        own = set(map(id, parameters))
        if any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
            raise RuntimeError(
                "optimizer.step() was called before the passes of the step were done: call it after the loop over "
                "passes(), and after an interrupted loop call restore() first."
            )


class StillWeights:
    """Warns once if no weight has changed in the first steps, as where the optimizer has other parameters.

    It looks at weights in the memory of the host alone: to read weights from a GPU the host would wait, which no step
    may make it do.
    """

    STEPS = 10  # A loss scaler may skip the first few.

    def __init__(self) -> None:
        self._first_step = 0
        self._before: list[Tensor] | None = None
        self._is_done = False

    def look(self, t: int, parameters: Sequence[Tensor]) -> None:
        """At the start of step t, with the weights at θ."""
        if self._is_done or any(p.device.type != "cpu" for p in parameters[:1]) or any(map(is_lazy, parameters)):
            return
        if self._before is None:
            self._first_step, self._before = t, [_some(p).clone() for p in parameters]
        elif t >= self._first_step + self.STEPS:
            if len(parameters) == len(self._before) and all(map(_equal, parameters, self._before)):
                warnings.warn(
                    f"no weight of the model has changed in {self.STEPS} steps: build the optimizer from the "
                    "parameters of this model, and call its step() after the passes.",
                    stacklevel=4,  # The line that asks for the passes.
                )
            self._before, self._is_done = None, True


def _some(parameter: Any) -> Tensor:
    """A few of the weights, of this rank's shard, spread over it: the first rows of an embedding may be unused."""
    own = parameter.detach()
    flat = (own.to_local() if hasattr(own, "to_local") else own).reshape(-1)
    some: Tensor = flat[:: max(1, flat.numel() // 16)]
    return some


def _equal(parameter: Tensor, before: Tensor) -> bool:
    own = _some(parameter)
    return own.shape == before.shape and torch.equal(own, before.to(own))
