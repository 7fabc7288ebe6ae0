"""The method: Randomized Sharpness-Aware Training (RST) and its general form, G-RST.

At every step t a gate X_t ~ Bernoulli(p(t)) decides whether the step is sharp. With the clean gradient g = ∇L(θ), the
perturbed gradient g_s = ∇L(θ + ρ g/‖g‖) and the ratio c = γ/ρ, the gradient of the step is (eq. 5, 7 and 9)::

    g_t = g                      if X_t = 0      one pass
    g_t = (1 - c) g + c g_s      if X_t = 1      two passes

where a pass is one forward and one backward propagation. The schemes of the paper differ in p(t) and c (Table 5)::

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
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.utils._pytree import tree_leaves, tree_map_only

from rst import guards
from rst.checks import in_unit_interval, non_negative
from rst.gate import ScheduleLike, make_gate
from rst.misuse import ClosureCheck, StillWeights, no_optimizer_step
from rst.perturbation import EPSILON, Only, Vector, Weights
from rst.schedules import AESAM
from rst.variants import Closure, Variant, variant_of

Weight = float | Tensor
Passes = Generator[Weight, None, None]
_COUNTERS = ("t", "sharp_steps", "forward_passes", "backward_passes", "_plain_passes")


class _MicroBatch(NamedTuple):
    """A micro-batch of a step."""

    number: int
    """Its place in the step, from 0."""
    last: bool
    """Whether it is the last one."""
    share: float
    """Its part of the step, in [0, 1]."""
    factor: Weight
    """Share times loss scale, by which its loss is multiplied."""
    observe: Callable[[], None]
    """Calls `Variant.observe`."""


class RST:
    """Randomized sharpness-aware training of a model, in a training loop of your own.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> half = rst.schedules.constant(0.5)
        >>> method = rst.RST(model, rho=0.05, schedule=half, gamma_ratio="auto")
        >>> for x in torch.ones(9, 8, 2):
        ...     for weight in method.passes():  # one pass, or two on a sharp step
        ...         loss = model(x).square().mean()
        ...         (weight * loss).backward()
        ...     optimizer.step(); optimizer.zero_grad()
        >>> method.t, method.sharp_steps, method.propagations
        (9, 3, 12.0)

    Args:
        model: the module that the loop calls: with several ranks, wrapped in ``DistributedDataParallel`` or sharded by
            ``fully_shard``.
        rho: radius ρ >= 0 of the perturbation: its 2-norm over all perturbed parameters together, in units of the
            weights. Or a callable (t, total_steps) -> ρ.
        schedule: p(t), from `rst.schedules`, or any callable (t, total_steps) -> p in [0, 1]; or
            `rst.schedules.ae_sam`, whose gate decides after the clean pass (of a step's first micro-batch).
        gamma_ratio: c = γ/ρ >= 0 (eq. 7). "auto" is 1 / (mean of p(t)): with a constant p, the expected gradient of
            every step is then that of SAM (eq. 6 and 8); with a p that changes, p(t) c is 1 in the mean over t only.
        total_steps: T >= 1, the number of optimizer steps; not needed with a constant schedule.
        seed: of the gate. X_t is a function of (seed, t) and p(t) alone, and so the same on every rank.
        variant: how a sharp step finds its gradient: a name (`rst.variants.variant_of`) or a `rst.variants.Variant`.
        only: (name, parameter) -> whether the parameter is perturbed; the ‖g‖ of the perturbation is that of the
            perturbed ones together. By default all trainable parameters are.
        sync_perturbation: with several ranks, perturb along the gradient averaged over the ranks, which takes one more
            all-reduce for each clean pass. By default each rank follows its own gradient. Not for GSAM and LookSAM;
            needed with ``fully_shard``, where gradients arrive averaged.
        normalise_clean: mix (1 - c) g/‖g‖ + c g_s in place of eq. 7, as the authors' later code does; this ‖g‖ is that
            of all trainable parameters together.

    Attributes:
        t: number of steps done, which is the index of the next step.
        sharp_steps: how many of them were sharp.
        forward_passes, backward_passes: propagations done so far, in units of one over all images of a step.

    Raises ValueError for an argument outside its range, p(t) outside [0, 1] at some t, parameters that lie on several
    devices or are sharded in a way that hides their norm, and an option that does not go with the variant or with the
    wrapper of the model (see above).
    """

    def __init__(
        self,
        model: nn.Module,
        rho: float | Callable[[int, Any], float],
        schedule: ScheduleLike | AESAM,
        gamma_ratio: float | str = 1.0,
        total_steps: int | None = None,
        seed: int = 0,
        variant: str | Variant = "sam",
        only: Only | None = None,
        sync_perturbation: bool = False,
        normalise_clean: bool = False,
    ) -> None:
        self.model, self.variant = model, variant_of(variant)
        self.rho = rho if callable(rho) else non_negative("rho", rho)
        self.schedule, self.total_steps, self.seed = schedule, total_steps, seed
        if sync_perturbation and self.variant.combine is not None:
            name = type(self.variant).__name__
            raise ValueError(f"sync_perturbation does not go with {name}, which mixes g and g_s: leave it out.")
        self.sync_perturbation, self.normalise_clean = sync_perturbation, normalise_clean
        self.t = self.sharp_steps = 0
        self.forward_passes = self.backward_passes = self._plain_passes = 0.0
        self._micro_batch, self._is_sharp = 0, False  # how many of step t are done, and whether they were sharp
        self._open: weakref.ref[Passes] | None = None
        self._gate = make_gate(schedule, total_steps, seed)
        self._parts = guards.Parts(model, own_gradient=self._gate.may_open and not sync_perturbation)
        self._weights = Weights(self._parts, only, self.variant.needs_whole_parameters)
        self._closures, self._still_weights = ClosureCheck(), StillWeights()
        if isinstance(gamma_ratio, str) and gamma_ratio != "auto":
            raise ValueError(f"gamma_ratio must be a number >= 0, or 'auto', got {gamma_ratio!r}.")
        self.gamma_ratio = non_negative("gamma_ratio", self._gate.ratio if gamma_ratio == "auto" else gamma_ratio)

    # The gate ---------------------------------------------------------------------------------------------------------

    @property
    def gate(self) -> Tensor:
        """X_t of every step (eq. 2), bool [total_steps], on the CPU. Raises ValueError without total_steps."""
        return self._gate.steps

    @property
    def sharp(self) -> bool | None:
        """Whether step t, the next one, is sharp; None where its clean pass decides. ValueError from total_steps on."""
        return self._gate(self.t)

    @property
    def expected_extra_propagations(self) -> float:
        """Δη (eq. 4), in passes a step, is the mean of p(t) times the extra passes of a sharp step of the variant."""
        return self._gate.mean * self.variant.extra_passes

    @property
    def drawn_extra_propagations(self) -> float:
        """Δη with the drawn X_t in place of p(t), over all T steps, or without total_steps over the steps done."""
        return self._gate.share(self.t) * self.variant.extra_passes

    @property
    def propagations(self) -> float:
        """The work so far, in passes over all images of a step; a backward propagation is two thirds of one."""
        return (self.forward_passes + 2 * self.backward_passes) / 3

    @property
    def realised_extra_propagations(self) -> float:
        """Δη as counted, the passes of the steps done over those of as many plain steps, less 1; at first 0."""
        return self.propagations / self._plain_passes - 1 if self._plain_passes else 0.0

    # The step ---------------------------------------------------------------------------------------------------------

    def passes(self, advance: bool = True, share: float = 1.0, scaler: GradScaler | None = None) -> Iterator[Weight]:
        """The passes of step t. Yields the weight of each one's loss: 1 in the clean pass, c in the perturbed pass.

        The body runs the forward pass and ``(weight * loss).backward()``; it must neither clear gradients nor call
        ``optimizer.step()``. A sharp step runs it twice, so that what else it changes, such as a hidden state, an
        iterator or a metric, changes twice: take that from the first pass. A gradient that was in ``.grad`` before
        takes no part in the perturbation and is kept in the sum. Afterwards, and also after an error, weights are θ to
        the bit, and buffers, frozen parameters and torch's random number generators are as the clean pass left them.
        The perturbed pass repeats the dropout masks of the clean pass (not so for ESAM).

        After an error inside the passes ``.grad`` holds a part of the step's gradient, and the step has not been done:
        call ``zero_grad()``, and begin it again with its first micro-batch.

        Args:
            advance: whether this is the last micro-batch of the step, after which t advances. Each micro-batch has its
                own perturbation and adds to the same gradient, which DDP averages in the last one.
            share: of this micro-batch in the step, in [0, 1]: a factor of the weights; the loss stays a plain mean.
            scaler: the loss scaler: its scale is a factor of the weights, which are then tensors. If the body scales
                the loss itself, AE-SAM and ``normalise_clean`` go wrong, and FriendlySAM where that scale changes.

        Raises ValueError for a variant that needs the loss of each sample (use `backward`), and past total_steps;
        RuntimeError where the clean pass left no gradient, or the body cleared one or called ``optimizer.step()``.
        """
        self.variant.check_passes()
        return self._start(advance, share, scaler, observe=lambda: None)

    def backward(
        self, closure: Closure, advance: bool = True, share: float = 1.0, scaler: GradScaler | None = None
    ) -> Tensor:
        """All `passes` of step t in one call. Returns the clean loss, without share and scale: a scalar, detached.

        ``closure()`` runs the forward pass and returns the loss, or a tensor of losses, whose mean is the loss. For
        ESAM and SSAM-F it takes an index of rows, ``closure(index)``, and returns the loss of each of them, [n].
        Raises what `passes` raises, and ValueError where the closure returns no tensor with a gradient, calls
        ``backward`` itself or, for ESAM and SSAM-F, returns anything but one loss for each row.

        Example:
            >>> model = torch.nn.Linear(2, 1)
            >>> method = rst.RST(model, rho=0.05, schedule=rst.schedules.always())
            >>> for i, x in enumerate(torch.ones(2, 8, 2)):  # a step of two micro-batches
            ...     closure = lambda: model(x).square().mean()
            ...     loss = method.backward(closure, share=1 / 2, advance=i == 1)
            >>> method.t, method.propagations
            (1, 2.0)
        """
        variant, clean, share = self.variant, torch.empty(0), in_unit_interval("share", share)
        closure = self._closures.checked(closure, self._weights.parameters)

        def observe() -> None:
            alone = self._parts.gradient_sync(enabled=False)
            with alone, guards.evaluation_mode(self.model), self._bystanders.preserved():
                cost = variant.observe(closure, self._weights.perturbed_parameters(), len(clean))
            self._count(share * cost, share * cost)

        for number, weight in enumerate(self._start(advance, share, scaler, observe)):
            losses, forward, backward = variant.losses(closure, clean if number else None)
            (weight * losses.mean()).backward()
            self._count(share * (forward - 1), share * (backward - 1))  # Beyond the pass itself.
            clean = clean if number else losses.detach()
        return clean.mean()

    def _start(self, advance: bool, share: float, scaler: GradScaler | None, observe: Callable[[], None]) -> Passes:
        self._end_open_passes()
        self._weights.look()
        self._still_weights.look(self.t, self._weights.parameters)
        share = in_unit_interval("share", share)
        factor: Weight = share
        if scaler is not None and scaler.is_enabled():
            factor = scaler.scale(torch.full((), share, device=self._weights.device))
        sharp = self._is_sharp if self._micro_batch else self.sharp
        passes = self._passes(sharp, _MicroBatch(self._micro_batch, bool(advance), share, factor, observe))
        # A weak reference, so that an error in the user's loop frees the generator at once, which restores the weights.
        self._open = weakref.ref(passes)
        return passes

    def _passes(self, sharp: bool | None, batch: _MicroBatch) -> Passes:
        self._parts.forget_copies()  # Of the weights before the last optimizer step.
        self._micro_batch = 0  # After an error the step begins again.
        with no_optimizer_step(self._weights.parameters):
            if sharp is False:
                with self._parts.gradient_sync(enabled=batch.last):
                    yield batch.factor  # g
                self._count(batch.share, batch.share)
            else:
                sharp = yield from self._sharp_passes(sharp, batch)
        self._plain_passes += batch.share
        self._is_sharp, self._micro_batch = sharp, 0 if batch.last else batch.number + 1
        self.sharp_steps += batch.last and sharp
        self.t += batch.last

    def _sharp_passes(self, sharp: bool | None, batch: _MicroBatch) -> Generator[Weight, None, bool]:
        """The passes of a sharp step, or of one whose clean pass decides that. Returns whether it was sharp."""
        weights, variant = self._weights, self.variant
        sync = self.sync_perturbation and variant.combine is None
        self._random, self._bystanders = guards.rng_states([weights.device]), guards.Bystanders(self._parts)
        if batch.number == 0:
            variant.process_group = self._parts.process_group
            variant.begin(weights.perturbed_parameters(), self.t, self.total_steps, self.seed)
        with weights.gradients_set_aside() as total:
            with self._parts.gradient_sync(enabled=sync):
                yield batch.factor  # g
            self._count(batch.share, batch.share)
            gradient = weights.gradient()
            if sharp is None:
                square = (gradient.norm() / batch.factor).square()
                sharp = self._gate.decide(self.t, self._parts.mean_over_ranks(square).item())
            if sharp and variant.needs_per_sample_loss:
                batch.observe()
            if sharp and variant.combine is None:
                yield from self._accumulated(total, gradient, batch)
                return True
            if sharp:
                yield from self._combined(gradient, batch)
            had_gradients = any(own is not None for own in total)
            weights.add_up(total)
        if batch.last and (had_gradients or not sync):  # Those from before the step may differ between ranks.
            self._parts.average_gradients()
        return sharp

    def _accumulated(self, total: list[Tensor | None], gradient: Vector, batch: _MicroBatch) -> Passes:
        """Adds (1 - c) g + c g_s to the total, by accumulation in ``.grad``."""
        weights, c = self._weights, self.gamma_ratio
        weights.add_clean(total, gradient, self._clean_weight(gradient, batch))
        with self._perturbed_pass(gradient, batch):
            weights.put_gradients(total)
            with self._parts.gradient_sync(enabled=batch.last):
                yield c * batch.factor  # g_s, which backward() adds to (1 - c) g
            self._count(batch.share, batch.share)
        weights.check_not_cleared(total)

    def _combined(self, gradient: Vector, batch: _MicroBatch) -> Passes:
        """Leaves (1 - c) g + c times what the variant makes of g and g_s in ``.grad``, on each rank by itself."""
        weights, variant = self._weights, self.variant
        assert variant.combine is not None
        clean = weights.copied(gradient)
        clean_weight = self._clean_weight(clean, batch)
        if variant.perturbs(batch.number):
            with self._perturbed_pass(gradient, batch), self._parts.gradient_sync(enabled=False):
                weights.clear_gradients()
                yield batch.factor  # g_s
                self._count(batch.share, batch.share)
        with torch.no_grad():
            sharp, clean = weights.filled(clean)
            variant.combine(sharp, clean, batch.number)
            torch._foreach_mul_(sharp, self.gamma_ratio)
            torch._foreach_mul_(clean, clean_weight)
            torch._foreach_add_(sharp, clean)

    @contextmanager
    def _perturbed_pass(self, gradient: Vector, batch: _MicroBatch) -> Iterator[None]:
        """At θ + ε, with the random numbers of the clean pass; bystanders stay as the clean pass left them."""
        rho = non_negative("rho", self.rho(self.t, self.total_steps)) if callable(self.rho) else self.rho
        perturbation = self._weights.perturbed(gradient, self.variant.perturb, rho, batch.factor)
        with perturbation, self._bystanders.preserved(), guards.replayed_rng(self._random):
            yield

    def _clean_weight(self, gradient: Vector, batch: _MicroBatch) -> Weight:
        """The factor of g: 1 - c, or (1 - c) / ‖g‖ where the clean gradient is normalised."""
        weight = 1 - self.gamma_ratio
        return weight * batch.factor / (gradient.norm() + EPSILON) if self.normalise_clean and weight else weight

    def _count(self, forward: float, backward: float) -> None:
        self.forward_passes += forward
        self.backward_passes += backward

    def count_replayed_step(self) -> None:
        """Count step t as done: its passes were not run here but replayed, as from a captured CUDA graph.

        The graph is that of another `RST` of the same model, whose schedule is `rst.schedules.always` or
        `rst.schedules.never`, as `sharp` says. Raises ValueError where the clean pass decides that, and for a variant
        with a state or a choice of samples, whose sharp steps are not all alike.
        """
        self.restore()
        sharp, variant = self.sharp, self.variant
        if sharp is None or (sharp and (variant.needs_per_sample_loss or variant.state_dict())):
            raise ValueError("steps that are not all alike cannot be replayed: run their passes one by one.")
        passes = 1 + sharp * variant.extra_passes
        self._count(passes, passes)
        self._plain_passes += 1
        self.sharp_steps += sharp
        self.t += 1

    def restore(self) -> None:
        """Give up a step that is not done, as after an error in a notebook: θ + ε becomes θ again, and t stays.

        The next passes are those of its first micro-batch.
        """
        self._end_open_passes()
        self._micro_batch = 0

    def _end_open_passes(self) -> None:
        passes = self._open() if self._open is not None else None
        if passes is not None:
            passes.close()

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickled method has: everything but a loop over `passes` that is still open."""
        return {**vars(self), "_open": None}

    def state_dict(self) -> dict[str, Any]:
        """t, the counters, what the gate is made of, and the variant's state, for a checkpoint."""
        self._end_open_passes()
        variant = self.variant.state_dict()
        return {name: vars(self)[name] for name in _COUNTERS} | {
            "gate": self._gate.state_dict(),
            "variant": variant,
            "variant_class": type(self.variant).__name__,
            "variant_values": len(tree_leaves(variant)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned.

        Raises ValueError where the gate or the variant was another one, or part of the variant's state is missing.
        """
        own = type(self.variant).__name__
        if (saved := state.get("variant_class", own)) != own:
            raise ValueError(
                f"the state is that of a method with variant {saved}, and this one has {own}: use {saved}."
            )
        values = len(tree_leaves(state["variant"]))
        if (saved_values := state.get("variant_values", values)) != values:
            raise ValueError(
                f"{own} saved {saved_values} values and gets {values}, as from torch.distributed.checkpoint, which "
                "loads only what a new method has: save the state of the method with torch.save, on every rank."
            )
        self.restore()
        self._gate.load_state_dict(state["gate"])
        vars(self).update({name: state[name] for name in _COUNTERS})
        device = self._weights.device
        self.variant.load_state_dict(tree_map_only(Tensor, lambda value: value.to(device), state["variant"]))
