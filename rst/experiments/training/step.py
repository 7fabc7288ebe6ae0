"""The training step: what happens to a batch between the loader and the optimizer, in reading order."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

import rst
from rst.experiments.build import autocast, build_method
from rst.experiments.spec import RunSpec
from rst.experiments.training.graphs import CapturedPasses
from rst.experiments.training.l2 import l2
from rst.experiments.training.metrics import EpochSums
from rst.experiments.training.state import TrainingState
from rst.guards import preserved_buffers, replayed_rng, rng_states
from rst.schedules import always, never
from rst.streams import stream


class TrainingStep:
    """One optimizer step of a run, on this rank.

    Args:
        spec: the run.
        state: network, optimizer, method and counters, which every step changes.
        forward: the network as it is called: wrapped for several ranks, and compiled where the run asks for it.
        device: where the network is.
        rank: of this process among those that train the run.
    """

    def __init__(
        self, spec: RunSpec, state: TrainingState, forward: Callable[[Tensor], Tensor], device: torch.device, rank: int
    ) -> None:
        self.spec, self.state, self.forward, self.device, self.rank = spec, state, forward, device, rank
        self.plain_in_one_pass = False
        """Whether a step that is known to be plain is one pass of the whole batch, as `warm_up` finds out."""
        self.graphs: dict[bool | None, CapturedPasses] = {}
        """The passes of a plain and of a sharp step, where `warm_up` captures them."""
        # Without an accelerator this is 15 times as fast as `torch.manual_seed`, which looks for all of them.
        self._seed_dropout = torch.default_generator.manual_seed if device.type == "cpu" else torch.manual_seed

    def __call__(self, images: Tensor, labels: Tensor) -> None:
        """Train on this rank's share of a batch: images [B, C, H, W], and labels [B] or soft targets [B, K]."""
        state = self.state

        # 1. The passes leave the mean of the micro-batches' mixed gradients in ``.grad``.
        sharp_steps_before = state.method.sharp_steps
        graph = self.graphs.get(state.method.sharp) if self.graphs else None
        if graph is not None:
            graph.replay(images, labels)
        else:
            self._passes(images, labels, state.method, state.sums)
        state.sums.sharp_steps += state.method.sharp_steps - sharp_steps_before

        # 2. That gradient, averaged over the ranks, is clipped.
        if self.spec.recipe.clip_norm is not None:
            state.scaler.unscale_(state.optimizer)
            nn.utils.clip_grad_norm_(state.model.parameters(), self.spec.recipe.clip_norm)

        # 3. Then comes the base optimizer, and its next learning rate.
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad()
        state.lr_scheduler.step()
        state.counters.step += 1

    def _passes(self, images: Tensor, labels: Tensor, method: rst.RST, sums: EpochSums, draws: bool = True) -> None:
        """The passes of the method's next step. ``draws``: whether any may draw random numbers.

        Every micro-batch has a perturbation of its own, as if it were on a device of its own. A step without
        perturbations is one pass where that is the same.
        """
        whole = self.plain_in_one_pass and method.sharp is False
        size = len(labels) if whole else self.spec.perturbation_batch
        for index, (x, y, last) in enumerate(micro_batches(self.state.model, images, labels, size)):
            if draws:
                # Dropout masks follow from the step and the place in the batch, and so do not depend on the ranks.
                place = self.rank * (len(labels) // size) + index
                self._seed_dropout(stream("dropout", self.spec.seed, self.state.counters.step, place).initial_seed())
            self._add_gradient(x, y, size / len(labels), last, method, sums)

    def _add_gradient(self, x: Tensor, y: Tensor, share: float, last: bool, method: rst.RST, sums: EpochSums) -> None:
        """Add a micro-batch's part of the step's gradient to ``.grad``, by one pass or, on a sharp step, by two."""
        passes: list[tuple[Tensor, slice | Tensor]] = []  # Losses and rows of every pass, the clean one first.

        def differentiated(rows: slice | Tensor = slice(None)) -> Tensor:
            """What a pass of the method differentiates: the loss of each image, [n], with the decay."""
            losses, logits = self.losses(x[rows], y[rows])
            if not passes:
                sums.add_clean_pass(losses.detach(), logits.detach(), y)
            passes.append((losses.detach(), rows))
            strength = self.spec.recipe.l2
            return losses + l2(self.state.model.parameters(), strength) if strength else losses

        method.backward(differentiated, advance=last, share=share, scaler=self.state.scaler)
        if len(passes) > 1:
            (clean, _), (perturbed, rows) = passes[0], passes[-1]
            sums.add_perturbed_pass(clean[rows].mean(), perturbed.mean(), share)

    def losses(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The cross-entropy of each image, [n], and the logits, [n, K]."""
        if self.spec.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        with autocast(self.spec, self.device):
            logits = self.forward(x)
        return F.cross_entropy(logits.float(), y, reduction="none"), logits

    def warm_up(self, images: Tensor, labels: Tensor) -> None:
        """Compile, tune and allocate by steps that leave no trace, so that the clock of the training starts later.

        These are a plain step and, where the run has sharp steps, a sharp one: a variant may have passes over fewer
        images, without gradients or in evaluation mode, each of which is compiled and tuned by itself. Where the
        network has neither batch norm nor buffers, by which images meet, and the plain step draws no random number,
        the plain steps of a run are one pass of the whole batch, and so is another one here. On a GPU the passes of
        both are then captured.
        """
        size, mean_p = self.spec.perturbation_batch, self.spec.mean_p
        plain, sharp = (partial(build_method, self.spec, self.state.method.model, p) for p in (never(), always()))
        draws = self._step_without_trace(plain(), images[:size], labels[:size])
        self.plain_in_one_pass = not (draws or mixes_images(self.state.model))
        if self.plain_in_one_pass and mean_p not in (1, None):
            self._step_without_trace(plain(), images, labels)
        if mean_p != 0:
            self._step_without_trace(sharp(), images[:size], labels[:size])
        if self.spec.cuda_graphs and not draws and self._steps_are_alike:
            pool, passes = torch.cuda.graph_pool_handle(), partial(self._passes, draws=False)
            for kind, method in ((False, plain), (True, sharp)):
                if mean_p != 1 - kind:  # At p = 1 no step is plain, and at p = 0 none is sharp.
                    self.graphs[kind] = CapturedPasses(passes, self.state, method(), images, labels, pool)

    @property
    def _steps_are_alike(self) -> bool:
        """Whether a plain and a sharp step, as known before the step, each run the same kernels all the time."""
        variant = self.spec.build_variant()
        keeps = variant.needs_per_sample_loss or variant.state_dict()
        return self.device.type == "cuda" and self.spec.devices == 1 and self.spec.mean_p is not None and not keeps

    def _step_without_trace(self, method: rst.RST, x: Tensor, y: Tensor) -> bool:
        """Make a step of the method and undo it. Returns whether it drew random numbers."""
        before = rng_states([self.device])
        with preserved_buffers(self.state.model), replayed_rng(before):
            method.backward(lambda rows=slice(None): self.losses(x[rows], y[rows])[0])
            after = rng_states([self.device])
        self.state.optimizer.zero_grad()
        return any(not torch.equal(now, then) for (_, now), (_, then) in zip(after, before, strict=True))


def mixes_images(model: nn.Module) -> bool:
    """Whether the images of a batch may meet in a network: in batch norm, or in a buffer, which keeps what it saw.

    A mean over the batch in a network's own code is not seen, unless that has a buffer.
    """
    return any(isinstance(module, _BatchNorm) for module in model.modules()) or any(True for _ in model.buffers())


@torch.no_grad()
def micro_batches(model: nn.Module, images: Tensor, labels: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Split a batch into micro-batches of ``size`` images; with each, whether it is the last of the step.

    Every micro-batch meets the buffers that the step began with. After the step, floating-point buffers have moved by
    the mean of the micro-batches' updates, and counters by one update: batch normalisation makes one update a step, as
    it does where statistics are averaged over devices.
    """
    parts = list(zip(images.split(size), labels.split(size), strict=True))
    if len(parts) == 1:
        yield images, labels, True
        return
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    counters = [buffer for buffer in model.buffers() if not buffer.is_floating_point()]
    before, counted = [b.clone() for b in buffers], [b.clone() for b in counters]
    # Updates are averaged, not values, so that buffers which no micro-batch changes stay as they are to the bit.
    update = [torch.zeros_like(b) for b in buffers]
    for index, (x, y) in enumerate(parts):
        last = index == len(parts) - 1
        yield x, y, last
        if buffers:
            torch._foreach_add_(update, torch._foreach_sub(buffers, before), alpha=1 / len(parts))
            torch._foreach_copy_(buffers, before)
        if counters and not last:
            torch._foreach_copy_(counters, counted)
    if buffers:
        torch._foreach_add_(buffers, update)
