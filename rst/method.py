"""The method: Randomized Sharpness-Aware Training (RST) and its general form G-RST.

Each step t draws a gate X_t ~ Bernoulli(p(t)). With the clean gradient g = ∇L(θ), the perturbed gradient
g_s = ∇L(θ + ρ g/‖g‖) and the ratio c = γ/ρ, the gradient of the step is (eq. 5, 7, 9)

    g_t = g                      if X_t = 0      one pass
    g_t = (1 - c) g + c g_s      if X_t = 1      two passes

    scheme    p(t)            c = γ/ρ                            Table 5
    SGD       0               -
    SAM       1               1
    GNR       1               free
    RST       any schedule    1
    G-RST     any schedule    free; "auto" is 1 / mean of p(t)

A variant of SAM (`rst.variants`) puts another gradient in the place of g_s; gate and c apply to it all the same.

`RST` leaves g_t in ``.grad``. Everything after that (clipping, optimizer, learning rate, loss scaling, checkpoints) is
the user's own and stays as it is.
"""

import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from rst.checks import at_least
from rst.gate import Gate, ScheduleLike
from rst.guards import (
    average_gradients,
    check_wrapper,
    evaluation_mode,
    gradient_sync,
    gradients_set_aside,
    kept_buffers,
    random_states,
    replayed_random_numbers,
    whole_parameters,
)
from rst.variants import Variant, variant_of
from rst.vectors import EPSILON, norm


class RST:
    """Randomized sharpness-aware training of a model, in a training loop of one's own.

        for weight in method.passes():                  # one pass, or two on a sharp step
            loss = criterion(model(x), y)
            (weight * loss).backward()
        optimizer.step(); optimizer.zero_grad()

    Args:
        model: the network as it is called, so with its `DistributedDataParallel` wrapper where there is one.
        rho: radius ρ >= 0 of the perturbation, in the 2-norm over all parameters; or a callable (t, total_steps) -> ρ.
        schedule: p(t), from `rst.schedules`, or any callable (t, total_steps) -> p in [0, 1].
        gamma_ratio: c = γ/ρ >= 0. "auto" is 1 / mean of p(t), with which the expected gradient is SAM's (eq. 8).
        total_steps: T, the number of optimizer steps; may be left out with a constant schedule.
        variant: how a sharp step finds g_s: a name ("sam", "asam", "gsam", "looksam", "esam", "ssam_f", "ssam_d") or
            an instance of `rst.variants.Variant`.
        seed: of the gate, which is a function of (seed, t) alone: equal on every rank, and nested in p.
        sync_perturbation: with DDP, perturb along the gradient averaged over the ranks, not along each rank's own; for
            variants whose sharp gradient is that at θ + ε.
        normalise_clean: mix (1 - c) g/‖g‖ + c g_s, as the authors' later code does, in place of eq. 7. Not together
            with a loss scaler, whose scale the first term would lose.

    Raises:
        ValueError: a value outside its range, p(t) outside [0, 1] at some t, or parameters that are not whole here.
    """

    def __init__(
        self,
        model: nn.Module,
        rho: float | Callable[[int, int | None], float],
        schedule: ScheduleLike,
        gamma_ratio: float | str = 1.0,
        total_steps: int | None = None,
        seed: int = 0,
        variant: str | Variant = "sam",
        sync_perturbation: bool = False,
        normalise_clean: bool = False,
    ) -> None:
        self.model = model
        self.rho = rho if callable(rho) else at_least(0, "rho", rho)
        self.schedule = schedule
        self.total_steps = total_steps
        self.variant = variant_of(variant)
        self.sync_perturbation = sync_perturbation
        self.normalise_clean = normalise_clean
        self.seed = seed
        self.t = 0
        self.forward_passes = 0.0
        self.backward_passes = 0.0
        self._part = 0  # micro-batches of step t that are done
        self._open: weakref.ref[Generator[float, None, None]] | None = None
        self._gate = Gate(schedule, total_steps, seed)
        if sync_perturbation and self.variant.combine is not None:
            raise ValueError(
                f"sync_perturbation does not go with {type(self.variant).__name__}, which combines g and g_s."
            )
        check_wrapper(model)
        whole_parameters(model)

        if gamma_ratio == "auto":
            if self._gate.mean == 0:
                raise ValueError(f"gamma_ratio 'auto' is 1 / mean of p(t), and schedule {schedule} never opens.")
            gamma_ratio = 1 / self._gate.mean
        self.gamma_ratio = at_least(0, "gamma_ratio", gamma_ratio)

    # ------------------------------------------------------------------------------------------------ the gate

    @property
    def gate(self) -> Tensor:
        """X_t for every step of the training (eq. 2): bool [total_steps], on the CPU."""
        return self._gate.steps

    @property
    def sharp(self) -> bool:
        """Whether step t, the next one, is sharp."""
        return self._gate(self.t)

    @property
    def expected_extra_propagations(self) -> float:
        """Δη (eq. 4): mean of p(t), times what a sharp step of the variant costs more than a plain one."""
        return self._gate.mean * self.variant.extra_passes

    @property
    def realised_extra_propagations(self) -> float:
        """Δη of the gate: over the whole training where total_steps is known, else over the steps done so far."""
        return self._gate.share(self.t) * self.variant.extra_passes

    # ------------------------------------------------------------------------------------------------ the step

    def passes(self, advance: bool = True) -> Iterator[float]:
        """The passes of step t: yields the weight of each one's loss, 1 for the clean pass and c for the perturbed.

        The body runs forward and ``(weight * loss).backward()``; it may hold a loss scaler, or a loop over
        micro-batches that share one perturbation. t advances when the last pass has ended without an error. With
        ``advance=False`` the step stays open: its gradient is kept, unsynchronised under DDP, and the next `passes`
        adds to it. The body must not clear gradients: the perturbed pass adds to what is left of the clean one.

        In the perturbed pass dropout repeats its masks; after it, weights and buffers are as the clean pass left them.
        """
        if self.variant.by_sample:
            raise ValueError(
                f"{type(self.variant).__name__} needs the loss of each sample: "
                "use backward(lambda index: losses(model(x[index]), y[index])), with one loss a sample."
            )
        return self._start(advance)

    def backward(self, closure: Callable[..., Tensor], advance: bool = True) -> Tensor:
        """All passes of step t in one line; returns the clean loss, detached.

        ``closure()`` runs the forward pass and gives the loss, or the losses of the samples, whose mean it is. For a
        variant that looks at samples it takes an index of rows, ``closure(index)``, and gives the loss of each.
        """
        clean = None
        for weight in self._start(advance):
            loss = closure(*self._rows(closure, clean))
            if self.variant.by_sample and loss.dim() != 1:
                raise ValueError(
                    f"{type(self.variant).__name__} needs the loss of each sample: the closure gave a tensor of shape "
                    f"{list(loss.shape)}, not [n]; use reduction='none'."
                )
            (weight * loss.mean()).backward()
            if clean is None:
                clean = loss.detach()
                if self.variant.by_sample and self.sharp:
                    with evaluation_mode(self.model), kept_buffers(self.model):
                        cost = self.variant.observe(closure, whole_parameters(self.model), len(clean))
                    self._count(cost, cost)
        assert clean is not None
        return clean.mean()

    def _rows(self, closure: Callable[..., Tensor], clean: Tensor | None) -> tuple[object, ...]:
        if not self.variant.by_sample:
            return ()
        if clean is None:
            return (slice(None),)
        rows, forward, backward = self.variant.select(closure, clean)
        self._count(forward - 1, backward - 1)
        return (rows,)

    def _start(self, advance: bool) -> Generator[float, None, None]:
        self.restore()
        passes = self._passes(self.sharp, advance)
        # Weakly: a loop that an exception ends must let go of its passes, and so restore the weights, at once.
        self._open = weakref.ref(passes)
        return passes

    def _passes(self, sharp: bool, advance: bool) -> Generator[float, None, None]:
        # Inside one autocast region round the step, low-precision copies of the weights would outlive their change.
        torch.clear_autocast_cache()
        if not sharp:
            with gradient_sync(self.model, enabled=advance):
                yield 1.0  # g
            self._count(1, 1)
        else:
            parameters = whole_parameters(self.model)
            if self._part == 0:
                self.variant.begin(parameters, self.t, self.total_steps, self.seed)
            step = self._accumulated if self.variant.combine is None else self._combined
            yield from step(parameters, advance)
        self._part = 0 if advance else self._part + 1
        self.t += advance

    def _accumulated(self, parameters: list[Tensor], advance: bool) -> Generator[float, None, None]:
        """(1 - c) g + c g_s, grown in ``.grad``, with no copy of g."""
        model, c = self.model, self.gamma_ratio
        states = random_states(p.device for p in parameters)
        with ExitStack() as perturbed_pass:
            with gradients_set_aside(parameters), gradient_sync(model, enabled=self.sync_perturbation):
                yield 1.0  # g
                self._count(1, 1)
                perturbed_pass.enter_context(perturbed(parameters, self.variant, self._rho()))
                # In place, and the perturbed pass accumulates onto it. Zero at c = 1, but not where g is infinite: an
                # overflow is still there for a loss scaler to find.
                clean = [p.grad for p in parameters if p.grad is not None]
                torch._foreach_mul_(clean, self._clean_weight(clean))
            perturbed_pass.enter_context(kept_buffers(model))
            perturbed_pass.enter_context(replayed_random_numbers(states))
            perturbed_pass.enter_context(gradient_sync(model, enabled=advance))
            yield c  # c g_s
            self._count(1, 1)

    def _combined(self, parameters: list[Tensor], advance: bool) -> Generator[float, None, None]:
        """(1 - c) g + c times what the variant makes of g and g_s; on each rank, then averaged."""
        model, variant, c = self.model, self.variant, self.gamma_ratio
        assert variant.combine is not None
        states = random_states(p.device for p in parameters)
        with gradients_set_aside(parameters), gradient_sync(model, enabled=False):
            yield 1.0  # g
            self._count(1, 1)
            clean = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
            if variant.perturbs(self._part):
                with ExitStack() as perturbed_pass:
                    perturbed_pass.enter_context(perturbed(parameters, variant, self._rho()))
                    torch._foreach_zero_([p.grad for p in parameters if p.grad is not None])
                    perturbed_pass.enter_context(kept_buffers(model))
                    perturbed_pass.enter_context(replayed_random_numbers(states))
                    yield 1.0  # g_s
                    self._count(1, 1)
            sharp = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            with torch.no_grad():
                variant.combine(sharp, clean, self._part)
                torch._foreach_mul_(sharp, c)
                torch._foreach_mul_(clean, self._clean_weight(clean))
                torch._foreach_add_(sharp, clean)
            for p, gradient in zip(parameters, sharp, strict=True):
                if p.grad is None and gradient.any():  # of a layer that this step skips, but LookSAM remembers
                    p.grad = gradient
        if advance:
            average_gradients(model)

    def _clean_weight(self, clean: list[Tensor]) -> float | Tensor:
        """1 - c, of g or of g/‖g‖."""
        return (1 - self.gamma_ratio) / (norm(clean) + EPSILON) if self.normalise_clean else 1 - self.gamma_ratio

    def _count(self, forward: float, backward: float) -> None:
        self.forward_passes += forward
        self.backward_passes += backward

    def restore(self) -> None:
        """Take back a perturbation that is still open, as an exception can leave it; without effect otherwise.

        A loop that is still in its passes ends after this one, and t stays.
        """
        passes = self._open() if self._open is not None else None
        if passes is not None:
            passes.close()

    # ----------------------------------------------------------------------------------------------- the state

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs: t and what the variant remembers. The gate follows from the seed."""
        self.restore()
        return {"t": self.t, **self.variant.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.restore()
        self.t, self._part = state["t"], 0
        device = next(self.model.parameters()).device
        self.variant.load_state_dict(tree_map_only(Tensor, lambda value: value.to(device), state))

    def _rho(self) -> float:
        return at_least(0, "rho", self.rho(self.t, self.total_steps)) if callable(self.rho) else self.rho


# ------------------------------------------------------------------------------------------------ the perturbation


@contextmanager
@torch.no_grad()
def perturbed(parameters: list[Tensor], variant: Variant, rho: float) -> Iterator[None]:
    """Inside, θ + ε with ε from ``.grad`` (for SAM, ρ g/‖g‖: Algorithm 1, line 8); afterwards θ, to the bit.

    Where ε is not finite nothing is perturbed. One buffer of the size of the parameters (the saved θ), no further
    temporary for SAM, no wait for the device.
    """
    parameters = [p for p in parameters if p.grad is not None]
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        raise RuntimeError("the clean pass left no gradient: call (weight * loss).backward() in every pass.")
    saved = [p.clone() for p in parameters]
    try:
        variant.perturb(parameters, saved, gradients, rho)
        for step in parameters:
            step.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)  # an infinite gradient over an infinite norm
        torch._foreach_add_(parameters, saved)
        torch.clear_autocast_cache()
        yield
    finally:
        torch._foreach_copy_(parameters, saved)
        torch.clear_autocast_cache()
