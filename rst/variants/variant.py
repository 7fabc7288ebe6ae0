"""The interface of a variant of SAM, and SAM itself."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from rst.perturbation import EPSILON, Vector

Closure = Callable[..., Tensor]
"""What `rst.RST.backward` calls: it runs the forward pass and returns the loss, a scalar or a tensor of losses.

For ESAM and SSAM-F it is given an index of n rows of the batch, and returns the loss of each, a vector [n]."""


class Variant:
    """How a sharp step turns the clean gradient g into its sharp gradient. This class is SAM: g_s = ∇L(θ + ρ g/‖g‖).

    A variant overrides `perturb` where its ε is another one, and `combine` where its sharp gradient is more than the
    gradient at θ + ε. The gate, c = γ/ρ, micro-batches, ranks, buffers, dropout and precision are handled by `rst.RST`
    for every variant alike.

    Example:
        >>> class UnnormalisedSAM(rst.variants.Variant):
        ...     def perturb(self, gradient, weights, scratch, rho, factor):
        ...         torch._foreach_mul_(gradient, rho / factor)  # ε = ρ g
        >>> model, always = torch.nn.Linear(2, 1), rst.schedules.always()
        >>> method = rst.RST(model, 0.1, always, variant=UnnormalisedSAM())
        >>> loss = method.backward(lambda: model(torch.ones(4, 2)).square().mean())
    """

    extra_passes: float = 1.0
    """Passes of a sharp step beyond the one of a plain step, in the mean over sharp steps."""

    needs_per_sample_loss: bool = False
    """Whether `Variant.observe` and `Variant.select` are called; they need a closure over rows of the batch."""

    depends_on_devices: bool = False
    """Whether the state is made from the gradients of all ranks together. If so, a run on n devices is another run than
    the one with n micro-batches on one device; for all other variants the two are the same up to rounding."""

    needs_whole_parameters: bool = False
    """Whether the variant goes wrong where a rank has only a shard of a parameter."""

    process_group: Any = None
    """The group of the ranks that share a step, which `rst.RST` sets before `begin`; None for torch's default one."""

    def perturb(self, gradient: Vector, weights: Vector, scratch: Vector, rho: float, factor: float | Tensor) -> None:
        """Turn the gradient into ε, in place. SAM: ε = ρ g/‖g‖ (Algorithm 1, line 8).

        The three vectors have a piece for each perturbed parameter that has a gradient.

        Args:
            gradient: ``factor`` times g.
            weights: θ, the model's own parameters, not to be changed.
            scratch: buffers of the same shapes, with any content, that may be overwritten.
            rho: ρ >= 0.
            factor: share of the micro-batch in the step, times the loss scale; only a rule that is not the same for
                all multiples of g needs it.
        """
        torch._foreach_mul_(gradient, rho / (gradient.norm() + EPSILON))

    combine: Callable[..., None] | None = None
    """``combine(sharp, clean, micro_batch)`` turns g_s, in the tensors of ``sharp``, into the sharp gradient in place.

    ``clean`` holds g and must not be changed; both are a `rst.perturbation.Vector` over all parameters, perturbed or
    not, to which one of the passes gave a gradient. ``micro_batch`` is the number of the micro-batch within its step,
    from 0. None means that the sharp gradient is g_s itself; no copy of g is then made."""

    def perturbs(self, micro_batch: int) -> bool:
        """Whether this sharp step has a perturbed pass; without one, ``combine`` finds g in ``sharp`` as well."""
        return True

    def check_passes(self) -> None:
        """Raise ValueError where the variant needs more than a loop over `rst.RST.passes`."""
        if self.needs_per_sample_loss:
            raise ValueError(
                f"{type(self).__name__} needs the loss of each sample: "
                "use backward(lambda index: losses(model(x[index]), y[index])), with one loss a sample."
            )

    def begin(self, parameters: Mapping[str, Tensor], t: int, total_steps: int | None, seed: int) -> None:
        """Called once at the start of step t, before its passes, if it may be sharp, with all perturbed parameters."""

    def losses(self, closure: Closure, clean_losses: Tensor | None) -> tuple[Tensor, float, float]:
        """The losses of the next pass; ``clean_losses`` are those of the clean pass, None before it.

        Returns them with what they cost, in forward and in backward propagations over the micro-batch. Raises
        ValueError where the variant needs the loss of each sample, and the closure returns anything but [n].
        """
        if not self.needs_per_sample_loss:
            return closure(), 1.0, 1.0
        rows, forward, backward = (
            (slice(None), 1.0, 1.0) if clean_losses is None else self.select(closure, clean_losses)
        )
        losses = closure(rows)
        if losses.dim() != 1:
            raise ValueError(
                f"{type(self).__name__} needs the loss of each sample: the closure returned a tensor of shape "
                f"{list(losses.shape)}, not [n]; use reduction='none'."
            )
        return losses, forward, backward

    def observe(self, closure: Closure, parameters: Mapping[str, Tensor], samples: int) -> float:
        """Called after the clean pass of ``samples`` samples, at θ and in evaluation mode, on a micro-batch.

        Returns what it cost, in passes over the micro-batch. Only where `needs_per_sample_loss`.
        """
        return 0.0

    def select(self, closure: Closure, clean_losses: Tensor) -> tuple[Any, float, float]:
        """Called at θ + ε with the losses of the clean pass, [n], to choose the rows of the perturbed pass.

        Returns an index of rows, and the cost of choosing them and of the perturbed pass together, in forward and in
        backward propagations over the micro-batch. Only where `needs_per_sample_loss`.
        """
        return slice(None), 1.0, 1.0

    def state_dict(self) -> dict[str, Any]:
        """What must be kept from step to step: tensors, numbers, and lists and dicts of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned. Tensors are already on the device of the model."""


class SAM(Variant):
    """Sharpness-aware minimisation: ε = ρ g/‖g‖ (Section 2.1; Algorithm 1, line 8). It has no options.

    Foret et al., 2021 (arXiv 2010.01412).

    Example:
        >>> model, always = torch.nn.Linear(2, 1), rst.schedules.always()
        >>> method = rst.RST(model, rho=0.1, schedule=always, variant=rst.variants.SAM())
        >>> method.expected_extra_propagations
        1.0
    """
