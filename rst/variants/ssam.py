"""SSAM: only part of the weights is perturbed, under a mask that is kept for many steps (Mi et al., 2022)."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rst.checks import in_unit_interval, positive_integer
from rst.perturbation import EPSILON, Vector
from rst.ranks import sum_over_ranks
from rst.streams import stream
from rst.variants.variant import Closure, Variant


class SSAM(Variant):
    """ε = ρ m ⊙ g / ‖g‖, with one mask m in {0, 1} over all weights together; ‖g‖ is that of the whole gradient.

    So ‖ε‖ <= ρ. Steps are divided into periods of ``update_every``; the first sharp step of a period makes a new mask,
    from the gradients of all ranks but only of the micro-batch that it is made in. The mask is the same on all ranks.
    Where a gradient is not finite the old mask stays, and the next sharp step makes a new one. A parameter that is
    new, or was frozen when the mask was made, is perturbed as a whole. State: the mask, and the step from which on it
    is due again.

    Args:
        sparsity: share of the weights with m = 0, in [0, 1); with 0 this is SAM.
        update_every: >= 1, in steps, sharp or not. The default is about an epoch of CIFAR in batches of 256.
    """

    depends_on_devices = needs_whole_parameters = True

    def __init__(self, sparsity: float = 0.5, update_every: int = 200) -> None:
        self.sparsity = in_unit_interval("sparsity", sparsity)
        if self.sparsity == 1:
            raise ValueError("sparsity must be below 1: at 1 no weight is perturbed.")
        self.update_every = positive_integer("update_every", update_every)
        self.mask: dict[str, Tensor] = {}
        self.due = 0
        self.exchanged_at, self.mask_before = -1, self.mask

    def begin(self, parameters: Mapping[str, Tensor], t: int, total_steps: int | None, seed: int) -> None:
        """Remember the parameters and t, which decide whether and how a mask is made later in the step.

        Raises ValueError for complex parameters, which have no order by size.
        """
        if any(p.is_complex() for p in parameters.values()):
            raise ValueError(f"{type(self).__name__} needs real weights: leave complex ones out with only=.")
        self.parameters, self.t = parameters, t
        for mask in (self.mask, self.mask_before):
            for name in [name for name in mask if name in parameters and mask[name].shape != parameters[name].shape]:
                del mask[name]

    def perturb(self, gradient: Vector, weights: Vector, scratch: Vector, rho: float, factor: float | Tensor) -> None:
        """Turn g into ρ m ⊙ g / ‖g‖."""
        radius = rho / (gradient.norm() + EPSILON)
        named = zip(gradient.names, gradient, strict=True)
        mask = self.mask_before if self.exchanged_at == self.t else self.mask
        masked = [(piece, mask[name]) for name, piece in named if name in mask]
        if masked:
            pieces, masks = zip(*masked, strict=True)
            torch._foreach_mul_(pieces, masks)
        torch._foreach_mul_(gradient, radius)

    @property
    def is_due(self) -> bool:
        """Whether this step makes a new mask."""
        return self.t >= self.due

    def renew(self, mask: dict[str, Tensor]) -> None:
        """Use this mask from now on. The next one is made in the next period."""
        self.mask = mask
        self.due = (self.t // self.update_every + 1) * self.update_every

    @property
    def total(self) -> int:
        """Number of weights."""
        return sum(p.numel() for p in self.parameters.values())

    @property
    def ones(self) -> int:
        """Number of weights that are perturbed."""
        return self.total - math.ceil(self.sparsity * self.total)

    def state_dict(self) -> dict[str, Any]:
        """``mask``: a bool tensor for each parameter, by name; ``due``: from this step on a new mask is made."""
        return {"mask": dict(self.mask), "due": self.due}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.mask, self.due, self.exchanged_at = dict(state["mask"]), state["due"], -1


class SSAMF(SSAM):
    """ε = ρ m ⊙ g / ‖g‖, where m in {0, 1} is 1 for the weights with the largest Fisher information Σ (∂ℓ/∂θ)².

    Mi et al., 2022 (arXiv 2210.05177), SSAM-F; Section B.6. The sum is over samples of the batch, whose gradients are
    taken one by one, in evaluation mode and before the perturbation. The mask is kept for ``update_every`` steps, and
    is the same on all ranks.

    Args:
        sparsity: share of the weights with m = 0, in [0, 1), else ValueError; with 0 this is SAM.
        update_every: an integer >= 1, in steps, sharp or not, else ValueError.
        samples: an integer >= 1, else ValueError; on every rank the first ``samples`` of the micro-batch are used, or
            all where it has fewer.

    Example:
        >>> model, x, y = torch.nn.Linear(2, 3), torch.randn(8, 2), torch.randint(3, (8,))
        >>> criterion = torch.nn.CrossEntropyLoss(reduction="none")
        >>> variant = rst.variants.SSAMF(sparsity=0.5, samples=4)
        >>> method = rst.RST(model, rho=0.1, schedule=rst.schedules.always(), variant=variant)
        >>> loss = method.backward(lambda rows: criterion(model(x[rows]), y[rows]))
        >>> method.propagations  # two, and half of one for the mask of 200 steps
        2.5
    """

    needs_per_sample_loss = True

    def __init__(self, sparsity: float = 0.5, update_every: int = 200, samples: int = 128) -> None:
        super().__init__(sparsity, update_every)
        self.samples = positive_integer("samples", samples)

    def observe(self, closure: Closure, parameters: Mapping[str, Tensor], samples: int) -> float:
        """Make a new mask where one is due; the cost is the share of the micro-batch's samples that was used."""
        if not self.is_due:
            return 0.0
        count = min(self.samples, samples)
        of = list(parameters.values())
        fisher = [torch.zeros_like(p) for p in of]
        for i in range(count):
            gradient = torch.autograd.grad(closure([i]).sum(), of, allow_unused=True, materialize_grads=True)
            torch._foreach_addcmul_(fisher, gradient, gradient)
        sum_over_ranks(fisher, self.process_group)
        if are_finite(fisher):
            self.renew(dict(zip(parameters, largest(fisher, self.ones), strict=True)))
        return count / samples


class SSAMD(SSAM):
    """ε = ρ m ⊙ g / ‖g‖, where the first m in {0, 1} is random; each later one exchanges part of them.

    Mi et al., 2022 (arXiv 2210.05177), SSAM-D; Section B.6. Those with the smallest ``|g|`` get m = 0, and as many
    others, drawn at random, get m = 1. The share that is exchanged at step t is d = ``drop`` ½ (1 + cos(πt/T)), or
    ``drop`` without total_steps. The step that makes a mask is itself still perturbed under the old one, in all of its
    micro-batches.

    Args:
        sparsity: share of the weights with m = 0, in [0, 1), else ValueError; with 0 this is SAM.
        update_every: an integer >= 1, in steps, sharp or not, else ValueError.
        drop: share of the weights with m = 1 that is exchanged at t = 0, in [0, 1], else ValueError.

    Example:
        >>> model, variant = torch.nn.Linear(3, 2), rst.variants.SSAMD(sparsity=0.25)
        >>> method = rst.RST(model, rho=0.1, schedule=rst.schedules.always(), variant=variant)
        >>> loss = method.backward(lambda: model(torch.ones(4, 3)).square().mean())
        >>> sum(int(mask.sum()) for mask in variant.mask.values())  # of 8
        6
    """

    def __init__(self, sparsity: float = 0.5, update_every: int = 200, drop: float = 0.5) -> None:
        super().__init__(sparsity, update_every)
        self.drop = in_unit_interval("drop", drop)

    def begin(self, parameters: Mapping[str, Tensor], t: int, total_steps: int | None, seed: int) -> None:
        """Remember what a mask of this step is made from, as a function of (seed, t)."""
        super().begin(parameters, t, total_steps, seed)
        self.share = self.drop * 0.5 * (1 + math.cos(math.pi * t / total_steps)) if total_steps else self.drop
        self.generator = stream("ssam", seed, t)

    def perturb(self, gradient: Vector, weights: Vector, scratch: Vector, rho: float, factor: float | Tensor) -> None:
        """Turn g into ρ m ⊙ g / ‖g‖, and make a new mask from |g| where one is due."""
        if not self.mask:
            self.renew(dict(zip(self.parameters, largest(self.noise(), self.ones), strict=True)))
        if self.is_due and (new_mask := self.exchanged(gradient)) is not None:
            self.exchanged_at, self.mask_before = self.t, self.mask
            self.renew(new_mask)
        super().perturb(gradient, weights, scratch, rho, factor)

    def exchanged(self, gradient: Vector) -> dict[str, Tensor] | None:
        """The mask with part of it exchanged; None where the gradient is not finite."""
        gradient_of = dict(zip(gradient.names, gradient, strict=True))
        size = [
            gradient_of[name].abs() if name in gradient_of else p.new_zeros(p.shape)
            for name, p in self.parameters.items()
        ]
        sum_over_ranks(size, self.process_group)
        if not are_finite(size):
            return None
        masks = [self.mask.get(name, torch.ones_like(p, dtype=torch.bool)) for name, p in self.parameters.items()]
        dropped = min(int(self.ones * self.share), self.total - self.ones)
        stay = largest([s.masked_fill(~m, -1.0) for s, m in zip(size, masks, strict=True)], self.ones - dropped)
        grow = largest([n.masked_fill(m, -1.0) for n, m in zip(self.noise(), masks, strict=True)], dropped)
        return {name: a | b for name, a, b in zip(self.parameters, stay, grow, strict=True)}

    def noise(self) -> list[Tensor]:
        """Random numbers, uniform on [0, 1), of the shapes of the parameters; the same on all ranks."""
        return [
            torch.rand(p.shape, generator=self.generator, device="cpu").to(p.device) for p in self.parameters.values()
        ]


def are_finite(tensors: list[Tensor]) -> bool:
    """Whether no number is infinite or NaN; on an accelerator this waits for the device."""
    filled = [tensor for tensor in tensors if tensor.numel()]
    return bool(torch.stack(torch._foreach_norm(filled, math.inf)).isfinite().all())


def largest(scores: list[Tensor], count: int) -> list[Tensor]:
    """Masks that are True at the ``count`` largest of all scores together, of the shapes of the scores."""
    flat = torch.cat([score.flatten() for score in scores])
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[flat.topk(count).indices] = True
    masks = mask.split([score.numel() for score in scores])
    return [own.view_as(score) for own, score in zip(masks, scores, strict=True)]
