"""The method: Randomized Sharpness-Aware Training (RST) and its general form, G-RST.

At every step t a gate X_t ~ Bernoulli(p(t)) decides whether the step is sharp. With the clean gradient g = ∇L(θ), the
perturbed gradient g_s = ∇L(θ + ρ g/‖g‖) and the ratio c = γ/ρ, the gradient of the step is (eq. 5, 7 and 9)

    g_t = g                      if X_t = 0      one pass
    g_t = (1 - c) g + c g_s      if X_t = 1      two passes

where a pass is one forward and one backward propagation. The schemes of the paper differ in p(t) and c (Table 5):

    scheme    p(t)            c = γ/ρ
    SGD       0               -
    SAM       1               1
    GNR       1               any
    RST       any schedule    1
    G-RST     any schedule    any; "auto" is 1 / (mean of p(t))

A variant of SAM (`rst.variants`) computes another gradient in the place of g_s; the gate and c apply to it unchanged.

`RST` leaves g_t in ``.grad``. Clipping, optimizer, learning rate, loss scaling and checkpoints are the user's own.
"""

import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from rst import guards
from rst.checks import non_negative
from rst.gate import Gate, ScheduleLike
from rst.perturbation import EPSILON, check_wrapper, norm, perturbed, trainable_parameters
from rst.variants import Variant, variant_of


class RST:
    """Randomized sharpness-aware training of a model, in a training loop of your own.

        for weight in method.passes():                  # one pass, or two on a sharp step
            loss = criterion(model(x), y)
            (weight * loss).backward()
        optimizer.step(); optimizer.zero_grad()

    Args:
        model: the module that the loop calls: with several ranks, the `DistributedDataParallel` wrapper.
        rho: radius ρ >= 0 of the perturbation: its 2-norm over all trainable parameters together, in units of the
            weights. Or a callable (t, total_steps) -> ρ.
        schedule: p(t), from `rst.schedules`, or any callable (t, total_steps) -> p in [0, 1].
        gamma_ratio: c = γ/ρ >= 0 (eq. 7). "auto" is 1 / (mean of p(t)): with a constant p, the expected gradient of
            every step is then that of SAM (eq. 6 and 8); with a p that changes, p(t) c is 1 in the mean over t only.
        total_steps: T >= 1, the number of optimizer steps; not needed with a constant schedule.
        seed: of the gate. X_t is a function of (seed, t) and p(t) alone, and so the same on every rank.
        variant: how a sharp step finds its gradient: "sam", "asam", "gsam", "looksam", "esam", "ssam_f", "ssam_d", or
            an instance of `rst.variants.Variant`.
        sync_perturbation: with several ranks, perturb along the gradient averaged over the ranks, which takes one more
            all-reduce for each clean pass. By default each rank follows its own gradient. Not for GSAM and LookSAM.
        normalise_clean: mix (1 - c) g/‖g‖ + c g_s in place of eq. 7, as the authors' later code does. Where c is not 1
            this is refused with several ranks and with several micro-batches a step. It must not be used with
            `torch.amp.GradScaler`, where it is wrong without an error: the loss scale cancels in g/‖g‖ but not in g_s.

    Attributes:
        t: number of steps done, which is the index of the next step.
        forward_passes, backward_passes: propagations done so far, in units of one over a whole micro-batch.

    Raises ValueError for an argument outside its range, p(t) outside [0, 1] at some t, parameters that are sharded over
    ranks or lie on several devices, and an option that does not go with the variant or with several ranks (see above).
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
        self.rho = rho if callable(rho) else non_negative("rho", rho)
        self.schedule = schedule
        self.total_steps = total_steps
        self.variant = variant_of(variant)
        self.sync_perturbation = sync_perturbation
        self.normalise_clean = normalise_clean
        self.seed = seed
        self.t = 0
        self.forward_passes = self.backward_passes = 0.0
        self._micro_batch = 0  # how many micro-batches of step t are done
        self._open: weakref.ref[Generator[float, None, None]] | None = None
        self._gate = Gate(schedule, total_steps, seed)
        if sync_perturbation and self.variant.combine is not None:
            name = type(self.variant).__name__
            raise ValueError(f"sync_perturbation does not go with {name}, which mixes g and g_s: leave it out.")
        check_wrapper(model)
        trainable_parameters(model)
        if gamma_ratio == "auto":
            if self._gate.mean == 0:
                raise ValueError(f"gamma_ratio 'auto' is 1 / (mean of p(t)), which is 0 for {schedule}: give a number.")
            gamma_ratio = 1 / self._gate.mean
        self.gamma_ratio = non_negative("gamma_ratio", gamma_ratio)
        self._check_normalised()

    # The gate ---------------------------------------------------------------------------------------------------------

    @property
    def gate(self) -> Tensor:
        """X_t of every step (eq. 2): bool [total_steps], on the CPU. Raises ValueError without total_steps."""
        return self._gate.steps

    @property
    def sharp(self) -> bool:
        """Whether step t is sharp, the one that the next `passes` runs. Raises ValueError from total_steps on."""
        return self._gate(self.t)

    @property
    def expected_extra_propagations(self) -> float:
        """Δη (eq. 4), in passes a step: mean of p(t), times the extra passes of a sharp step of the variant."""
        return self._gate.mean * self.variant.extra_passes

    @property
    def realised_extra_propagations(self) -> float:
        """Δη with the drawn X_t in place of p(t): over all T steps, or without total_steps over the steps done."""
        return self._gate.share(self.t) * self.variant.extra_passes

    # The step ---------------------------------------------------------------------------------------------------------

    def passes(self, advance: bool = True) -> Iterator[float]:
        """The passes of step t. Yields the weight of each one's loss: 1 in the clean pass, c in the perturbed pass.

        The body runs the forward pass and ``(weight * loss).backward()``. It may use a loss scaler, or loop over
        micro-batches that then share one perturbation; it must not clear gradients, to which the perturbed pass adds.
        A gradient that was in ``.grad`` before takes no part in the perturbation and is kept in the sum.

        t advances when the last pass has ended without an error. With ``advance=False`` the step stays open: the next
        `passes` runs another micro-batch of it, which has its own perturbation and adds to the same gradient. DDP
        averages that gradient over the ranks in the last micro-batch.

        In the perturbed pass dropout repeats the masks of the clean pass (ESAM is an exception). Afterwards, and also
        after an error, weights, buffers and random number generators are as the clean pass left them.

        Raises ValueError for a variant that needs the loss of each sample (use `backward`), past total_steps, and for
        ``normalise_clean`` in a step of several micro-batches; RuntimeError where the clean pass left no gradient.
        """
        if self.variant.needs_per_sample_loss:
            raise ValueError(
                f"{type(self.variant).__name__} needs the loss of each sample: "
                "use backward(lambda index: losses(model(x[index]), y[index])), with one loss a sample."
            )
        return self._start(advance)

    def backward(self, closure: Callable[..., Tensor], advance: bool = True) -> Tensor:
        """All `passes` of step t in one call. Returns the clean loss: a scalar, detached.

        ``closure()`` runs the forward pass and returns the loss, or a tensor of losses, whose mean is the loss. For
        ESAM and SSAM-F it takes an index of rows, ``closure(index)``, and returns the loss of each of them, [n].
        Raises as `passes` does, and ValueError where such a closure returns anything but [n].
        """
        per_sample, clean = self.variant.needs_per_sample_loss, None
        for weight in self._start(advance):
            loss = closure(self._rows(closure, clean)) if per_sample else closure()
            if per_sample and loss.dim() != 1:
                raise ValueError(
                    f"{type(self.variant).__name__} needs the loss of each sample: the closure returned a tensor of "
                    f"shape {list(loss.shape)}, not [n]; use reduction='none'."
                )
            (weight * loss.mean()).backward()
            if clean is None:
                clean = loss.detach()
                if per_sample and self.sharp:
                    with guards.evaluation_mode(self.model), guards.preserved_buffers(self.model):
                        cost = self.variant.observe(closure, trainable_parameters(self.model), len(clean))
                    self._count(cost, cost)
        assert clean is not None
        return clean.mean()

    def _rows(self, closure: Callable[..., Tensor], clean: Tensor | None) -> object:
        """Rows of the batch for the next pass: all in the clean one, then those that the variant selects."""
        if clean is None:
            return slice(None)
        rows, forward, backward = self.variant.select(closure, clean)
        self._count(forward - 1, backward - 1)
        return rows

    def _start(self, advance: bool) -> Generator[float, None, None]:
        self.restore()
        self._check_normalised(advance)
        passes = self._passes(self.sharp, advance)
        # A weak reference, so that an error in the user's loop frees the generator at once, which restores the weights.
        self._open = weakref.ref(passes)
        return passes

    def _passes(self, sharp: bool, advance: bool) -> Generator[float, None, None]:
        # Autocast caches its low-precision copies of the weights; those of the previous step are out of date.
        torch.clear_autocast_cache()
        if not sharp:
            with guards.gradient_sync(self.model, enabled=advance):
                yield 1.0  # g
            self._count(1, 1)
        else:
            parameters = trainable_parameters(self.model)
            if self._micro_batch == 0:
                self.variant.begin(parameters, self.t, self.total_steps, self.seed)
            sharp_step = self._accumulated if self.variant.combine is None else self._combined
            yield from sharp_step(parameters, advance)
        self._micro_batch = 0 if advance else self._micro_batch + 1
        self.t += advance

    def _accumulated(self, parameters: list[Tensor], advance: bool) -> Generator[float, None, None]:
        """(1 - c) g + c g_s, by accumulation in ``.grad``, without a copy of g."""
        model, c = self.model, self.gamma_ratio
        states = guards.rng_states(p.device for p in parameters)
        with ExitStack() as stack:
            with guards.fresh_gradients(parameters), guards.gradient_sync(model, enabled=self.sync_perturbation):
                yield 1.0  # g
                self._count(1, 1)
                stack.enter_context(self._perturbed_pass(parameters, states))
                # At c = 1 this multiplies by 0, but infinity * 0 is NaN: a loss scaler still sees an overflow of g.
                clean = [p.grad for p in parameters if p.grad is not None]
                torch._foreach_mul_(clean, self._clean_weight(clean))
            stack.enter_context(guards.gradient_sync(model, enabled=advance))
            yield c  # g_s, which backward() adds to (1 - c) g
            self._count(1, 1)

    def _combined(self, parameters: list[Tensor], advance: bool) -> Generator[float, None, None]:
        """(1 - c) g + c times what the variant combines g and g_s to; on each rank by itself, then averaged."""
        model, variant, c = self.model, self.variant, self.gamma_ratio
        assert variant.combine is not None
        states = guards.rng_states(p.device for p in parameters)
        with guards.fresh_gradients(parameters), guards.gradient_sync(model, enabled=False):
            yield 1.0  # g
            self._count(1, 1)
            clean = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
            if variant.perturbs(self._micro_batch):
                with self._perturbed_pass(parameters, states):
                    torch._foreach_zero_([p.grad for p in parameters if p.grad is not None])
                    yield 1.0  # g_s
                    self._count(1, 1)
            sharp = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            with torch.no_grad():
                variant.combine(sharp, clean, self._micro_batch)
                torch._foreach_mul_(sharp, c)
                torch._foreach_mul_(clean, self._clean_weight(clean))
                torch._foreach_add_(sharp, clean)
            for p, gradient in zip(parameters, sharp, strict=True):
                # A layer that this step skipped stays at None, unless LookSAM added an earlier direction of it.
                if p.grad is None and gradient.any():
                    p.grad = gradient
        if advance:
            guards.average_gradients(model)

    @contextmanager
    def _perturbed_pass(self, parameters: list[Tensor], states: guards.RngStates) -> Iterator[None]:
        """At θ + ε, with the random numbers of the clean pass; buffers are afterwards as the clean pass left them."""
        rho = non_negative("rho", self.rho(self.t, self.total_steps)) if callable(self.rho) else self.rho
        perturbation = perturbed(parameters, self.variant.perturb, rho)
        with perturbation, guards.preserved_buffers(self.model), guards.replayed_rng(states):
            yield

    def _clean_weight(self, clean: list[Tensor]) -> float | Tensor:
        """The factor of g: 1 - c, or (1 - c) / ‖g‖ where the clean gradient is normalised."""
        return (1 - self.gamma_ratio) / (norm(clean) + EPSILON) if self._normalises else 1 - self.gamma_ratio

    @property
    def _normalises(self) -> bool:
        """Whether g/‖g‖ enters a gradient: at c = 1 its weight is 0, and at p = 0 no step is sharp."""
        return self.normalise_clean and self.gamma_ratio != 1 and self._gate.mean > 0

    def _check_normalised(self, advance: bool = True) -> None:
        # Each micro-batch and rank would divide by its own ‖g‖, in which its share of the loss cancels.
        if self._normalises and (not advance or self._micro_batch > 0 or guards.world_size() > 1):
            raise ValueError(
                f"normalise_clean with gamma_ratio {self.gamma_ratio:g} works only on one rank with one perturbation a "
                "step: run all micro-batches in the body of one passes(), or leave normalise_clean out."
            )

    def _count(self, forward: float, backward: float) -> None:
        self.forward_passes += forward
        self.backward_passes += backward

    def restore(self) -> None:
        """End passes that are still open, for example after an error in a notebook: θ + ε becomes θ again, t stays.

        A loop that still holds their iterator gets no further pass. Without open passes this does nothing.
        """
        passes = self._open() if self._open is not None else None
        if passes is not None:
            passes.close()

    # The state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """t and the variant's state, for a checkpoint. The gate is not in it: seed and schedule give it again."""
        self.restore()
        return {"t": self.t, **self.variant.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned. The constructor must have had the same arguments as before."""
        self.restore()
        self.t, self._micro_batch = state["t"], 0
        device = next(self.model.parameters()).device
        self.variant.load_state_dict(tree_map_only(Tensor, lambda value: value.to(device), state))
