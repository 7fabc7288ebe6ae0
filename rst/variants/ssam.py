"""SSAM: a perturbation of some of the weights, under a mask that lasts (Mi et al., 2022)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rst.checks import in_unit_interval
from rst.guards import sum_over_ranks
from rst.streams import stream
from rst.variants.variant import Closure, Variant
from rst.vectors import EPSILON, norm


class SSAM(Variant):
    """ε = ρ m ⊙ g / ‖g‖, with one mask m over all weights together, of which a share ``sparsity`` in [0, 1) is 0.

    The norm is that of the whole gradient, so that ‖ε‖ <= ρ. A new mask is due every ``update_every`` steps (by
    default about an epoch of CIFAR in batches of 256), and is made at the first sharp step from then on; it is equal
    on all ranks.
    """

    def __init__(self, sparsity: float = 0.5, update_every: int = 200) -> None:
        self.sparsity = in_unit_interval("sparsity", sparsity)
        if self.sparsity == 1:
            raise ValueError("sparsity must be below 1, or nothing would be perturbed.")
        if not isinstance(update_every, int) or update_every < 1:
            raise ValueError(f"update_every must be a number of steps from 1, got {update_every!r}.")
        self.update_every = update_every
        self.mask: list[Tensor] = []
        self.due = 0

    def begin(self, parameters: Sequence[Tensor], t: int, total_steps: int | None, seed: int) -> None:
        """Note the step, for a mask that is due."""
        self.parameters, self.t = parameters, t

    def perturb(self, out: list[Tensor], weights: list[Tensor], gradients: list[Tensor], rho: float) -> None:
        """Write ρ m ⊙ g / ‖g‖."""
        torch._foreach_copy_(out, gradients)
        of = dict(zip(self.parameters, self.mask, strict=True))
        torch._foreach_mul_(out, [of[p] for p in out])
        torch._foreach_mul_(out, rho / (norm(gradients) + EPSILON))

    @property
    def is_due(self) -> bool:
        """Whether this step makes a mask."""
        return self.t >= self.due

    def renew(self, mask: list[Tensor]) -> None:
        """Take another mask; the next one is due with the next period."""
        self.mask = mask
        self.due = (self.t // self.update_every + 1) * self.update_every

    @property
    def total(self) -> int:
        """Number of weights."""
        return sum(p.numel() for p in self.parameters)

    @property
    def ones(self) -> int:
        """How many of them are perturbed."""
        return self.total - math.ceil(self.sparsity * self.total)

    def state_dict(self) -> dict[str, Any]:
        """The mask, and the step from which on another one is due."""
        return {"mask": self.mask, "due": self.due}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.mask, self.due = list(state["mask"]), state["due"]


class SSAMF(SSAM):
    """The mask keeps the weights with the largest Fisher information Σ (∂ℓ/∂θ)², over samples of the current batch.

    ``samples`` of each batch that makes a mask are looked at one by one, in evaluation mode.
    """

    by_sample = True

    def __init__(self, sparsity: float = 0.5, update_every: int = 200, samples: int = 128) -> None:
        super().__init__(sparsity, update_every)
        if not isinstance(samples, int) or samples < 1:
            raise ValueError(f"samples must be an integer from 1, got {samples!r}.")
        self.samples = samples

    def observe(self, closure: Closure, parameters: Sequence[Tensor], samples: int) -> float:
        """Make the mask that is due."""
        if not self.is_due:
            return 0.0
        count = min(self.samples, samples)
        fisher = [torch.zeros_like(p) for p in parameters]
        for i in range(count):
            gradient = torch.autograd.grad(closure([i]).sum(), parameters, allow_unused=True, materialize_grads=True)
            torch._foreach_addcmul_(fisher, gradient, gradient)
        sum_over_ranks(fisher)
        self.renew(largest(fisher, self.ones))
        return count / samples


class SSAMD(SSAM):
    """The mask starts at random; each new one drops the weights with the smallest |g| for others drawn at random.

    Of the perturbed weights a share d falls out, with d = ``drop`` ½ (1 + cos πt/T). The step that makes a mask is
    itself still perturbed under the old one.
    """

    def __init__(self, sparsity: float = 0.5, update_every: int = 200, drop: float = 0.5) -> None:
        super().__init__(sparsity, update_every)
        self.drop = in_unit_interval("drop", drop)

    def begin(self, parameters: Sequence[Tensor], t: int, total_steps: int | None, seed: int) -> None:
        """Note the step, for a mask that is due."""
        super().begin(parameters, t, total_steps, seed)
        self.share = self.drop * 0.5 * (1 + math.cos(math.pi * t / total_steps)) if total_steps else self.drop
        self.generator = stream("ssam", seed, t)

    def perturb(self, out: list[Tensor], weights: list[Tensor], gradients: list[Tensor], rho: float) -> None:
        """Write ρ m ⊙ g / ‖g‖, and make the mask that is due."""
        if not self.mask:
            self.renew(largest(self.noise(), self.ones))
        super().perturb(out, weights, gradients, rho)
        if self.is_due:
            of = dict(zip(out, gradients, strict=True))
            size = [of[p].abs() if p in of else torch.zeros_like(p) for p in self.parameters]
            sum_over_ranks(size)
            dropped = min(int(self.ones * self.share), self.total - self.ones)
            stay = largest([s.masked_fill(~m, -1.0) for s, m in zip(size, self.mask, strict=True)], self.ones - dropped)
            grow = largest([n.masked_fill(m, -1.0) for n, m in zip(self.noise(), self.mask, strict=True)], dropped)
            self.renew([a | b for a, b in zip(stay, grow, strict=True)])

    def noise(self) -> list[Tensor]:
        """Uniform on [0, 1), equal on all ranks."""
        return [torch.rand(p.shape, generator=self.generator).to(p.device) for p in self.parameters]


def largest(scores: list[Tensor], count: int) -> list[Tensor]:
    """A mask with ``count`` ones, at the largest of all scores together."""
    flat = torch.cat([score.flatten() for score in scores])
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[flat.topk(count).indices] = True
    return [part.view_as(score) for part, score in zip(mask.split([s.numel() for s in scores]), scores, strict=True)]
