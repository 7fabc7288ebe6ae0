"""The loop: one run, from its config to its summary."""

import math
import os
import resource
import sys
import time
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

import rst
from rst.experiments.config import (
    InputError,
    bad_input,
    gamma_ratio,
    schedule_of,
    total_steps,
    variant,
)
from rst.experiments.mirror import Mirror
from rst.experiments.record import Record, open_record
from rst.guards import kept_buffers
from rst.streams import stream
from rst.training import checkpoint
from rst.training.agreement import Lookout, compare, digest, facts_of_a_run
from rst.training.data import RunData, readable
from rst.training.decay import l2
from rst.training.distributed import World, averaged_buffers, is_rank, joined, launch
from rst.training.evaluation import evaluate
from rst.training.metrics import EpochSums
from rst.training.microbatches import micro_batches
from rst.training.progress import Interrupted, Progress, stop_requests


def train(cfg: DictConfig, show_progress: bool = True) -> Record:
    """Train the run that ``cfg`` describes, from where its record stands, to its summary; a run that is done is kept.

    On ``devices`` > 1 it starts as many ranks; in a process that is a rank already it joins the others. The first
    rank alone writes. Raises `InputError` for bad input, a loss that is not finite and ranks that differ or end,
    `Interrupted` on SIGINT, SIGTERM, SIGUSR1 and SIGUSR2.
    """
    record = open_record(cfg)
    if cfg.devices > 1 and not is_rank():
        return record if record.done else launch(train, cfg.devices, cfg, show_progress)
    with joined(cfg.devices) as world:
        if not world.first(lambda: record.done):
            run = Run(cfg, record, world, show_progress)  # bad input shows here, before anything is written
            with ExitStack() as stack:
                world.first(lambda: stack.enter_context(record.training(cfg)))
                if not world.first(lambda: record.done):
                    run.to_the_end()
    return record


def build_model(cfg: DictConfig, device: torch.device) -> nn.Module:
    """The network, its weights drawn from the seed's own stream."""
    torch.manual_seed(stream("init", cfg.seed).initial_seed())
    with bad_input():
        model: nn.Module = instantiate(cfg.model)
    model = model.to(device)
    return model.to(memory_format=torch.channels_last) if cfg.channels_last else model


def autocast(cfg: DictConfig, device: torch.device) -> torch.autocast:
    """The precision of the network's passes."""
    dtype = getattr(torch, cfg.autocast) if cfg.autocast else None
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def lr_decay(t: int, total_steps: int, warmup_steps: float) -> float:
    """Learning rate of step t over the base's: ½ (1 + cos πt/T), times t / warmup_steps while that is below 1."""
    warmup = min(1.0, t / warmup_steps) if warmup_steps else 1.0
    return warmup * 0.5 * (1 + math.cos(math.pi * t / total_steps))


class Run:
    """A run at some step, on this rank: what the next one needs, and what a checkpoint keeps."""

    def __init__(self, cfg: DictConfig, record: Record, world: World, show_progress: bool) -> None:
        self.cfg, self.record, self.world = cfg.copy(), record, world
        self.show_progress = show_progress and world.rank == 0
        if world.rank > 0:
            self.cfg.wandb.mode = "disabled"
        self.device = world.device(cfg)
        if cfg.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS refuses
        torch.use_deterministic_algorithms(cfg.deterministic)
        torch.backends.cudnn.benchmark = not cfg.deterministic

        with world.host_first():
            self.data = RunData(cfg, self.device, world)
        self.loader = self.data.loader()
        self.model = build_model(cfg, self.device)
        compare(world, lambda: facts_of_a_run(cfg, self.device, self.data, self.model))
        parallel = world.parallel(self.model, self.device)
        self.forward = torch.compile(parallel) if cfg.compile else parallel
        with bad_input("optimizer: "):
            self.optimizer = instantiate(cfg.optimizer, params=self.model.parameters())
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=cfg.autocast == "float16")
        self.total_steps = total_steps(cfg)
        self.method = rst.RST(
            parallel,
            rho=cfg.variant.rho,
            schedule=schedule_of(cfg),
            gamma_ratio=gamma_ratio(cfg),
            variant=variant(cfg),
            total_steps=self.total_steps,
            seed=cfg.seed,
            normalise_clean=cfg.scheme.normalise_clean,
        )
        compare(world, lambda: {"the gate": digest([self.method.gate])})
        # The global generators are dropout's from here on. Without a device, `torch.manual_seed` is 15 times as slow.
        self.seed_dropout = torch.default_generator.manual_seed if self.device.type == "cpu" else torch.manual_seed

        self.step = 0
        self.seconds = 0.0  # of training: start-up, evaluation and checkpoints are not in it
        self.checkpoint_seconds = 0.0  # but for those of the last one before each stop
        self.sharp_steps = 0
        self.forward_passes = 0.0
        self.backward_passes = 0.0
        self.sums = EpochSums(self.device)
        self.scores: dict[str, float] = {}
        self.best_test_error = math.inf

    # ------------------------------------------------------------------------------------------------- the run

    def to_the_end(self) -> None:
        """Train the epochs that are left, and write metrics, checkpoints and, last, the summary."""
        self._resume()
        epochs, done = self.cfg.recipe.epochs, self.step // len(self.loader)
        self.world.first(lambda: self.record.keep_epochs(done))
        self.world.first(lambda: self.record.write_environment(self.device, self.data.source.digest))
        mirror = Mirror(self.cfg, self.record)
        progress = Progress(self.total_steps, self.step, self.record.id, self.show_progress)
        lookout = Lookout(self.world, self.step)
        saved, cost = self.seconds, 0.0
        try:
            self._warm_up()
            with stop_requests(lookout.requests.append):
                for epoch in range(done, epochs):
                    self._train_epoch(epoch, progress, lookout)
                    if self._evaluated(epoch):
                        self.scores = self._evaluate()
                        self._raise_if_diverged()
                        self.best_test_error = min(self.best_test_error, self.scores["test_error"])
                    metrics = self._metrics(epoch)
                    self.world.first(partial(self.record.append, metrics))
                    mirror.log(metrics)
                    self.sums = EpochSums(self.device)
                    # Half a hundredth of the training time, and the first and the last checkpoint.
                    due = self.seconds - saved >= 200 * cost
                    signal_number, save = self.world.max(lookout.request, due)
                    if signal_number and epoch + 1 < epochs:
                        self._stop(int(signal_number))
                    if save or epoch + 1 == epochs:
                        begin, saved = time.monotonic(), self.seconds
                        self._save()
                        cost = time.monotonic() - begin
            summary = self._summary()
            self.world.first(lambda: self.record.finish(summary))
            mirror.finish(summary)
        finally:
            progress.close()
            mirror.close()

    def _train_epoch(self, epoch: int, progress: Progress, lookout: Lookout) -> None:
        first, begin = self.step - epoch * len(self.loader), time.perf_counter()
        signal_number = 0
        for images, labels in readable(self.loader.epoch(epoch, first)):
            self._train_step(images, labels)
            progress.step(lambda: self._figures(first, begin))
            if lookout.is_due(self.step):
                signal_number = lookout.look(self.step)
                self._raise_if_diverged()
                if signal_number and self.step % len(self.loader):  # at its end the epoch is recorded first
                    break
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds += time.perf_counter() - begin
        self._raise_if_diverged()
        if signal_number and self.step % len(self.loader):
            self._stop(signal_number)

    def _train_step(self, images: Tensor, labels: Tensor) -> None:
        recipe = self.cfg.recipe
        for group in self.optimizer.param_groups:
            warmup_steps = recipe.warmup_epochs * len(self.loader)
            group["lr"] = self.cfg.optimizer.lr * lr_decay(self.step, self.total_steps, warmup_steps)

        size = recipe.perturbation_batch or len(labels)
        share, parts = size / len(labels), len(labels) // size
        self.sharp_steps += self.method.sharp
        self.sums.sharp_steps += self.method.sharp
        passes = self.method.forward_passes, self.method.backward_passes
        for part, (x, y, last) in enumerate(micro_batches(self.model, images, labels, size)):
            # Dropout's masks are those of the step and of the place in the batch, on however many ranks.
            key = (self.cfg.seed, self.step, self.world.rank * parts + part)
            self.seed_dropout(stream("dropout", *key).initial_seed())
            losses: list[Tensor] = []
            self.method.backward(partial(self._scaled_losses, x, y, share, losses), advance=last)
            if len(losses) > 1:
                self.sums.perturbed_pass(losses[0], losses[-1], share)
        self.forward_passes += share * (self.method.forward_passes - passes[0])
        self.backward_passes += share * (self.method.backward_passes - passes[1])

        if recipe.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.step += 1

    def _scaled_losses(
        self, x: Tensor, y: Tensor, share: float, losses: list[Tensor], rows: slice | Tensor = slice(None)
    ) -> Tensor:
        """What a pass of the method differentiates: [n] of a micro-batch. Its plain mean is added to ``losses``."""
        data_losses, logits = self._losses(x[rows], y[rows])
        if not losses:
            self.sums.clean_pass(data_losses.detach(), logits.detach(), y)
        losses.append(data_losses.detach().mean())
        strength = self.cfg.recipe.l2
        decay = l2(self.model.parameters(), strength) if strength else 0.0
        return self.scaler.scale(share * (data_losses + decay))

    def _losses(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of each image, and the logits."""
        if self.cfg.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        with autocast(self.cfg, self.device):
            logits = self.forward(x)
        return F.cross_entropy(logits.float(), y, reduction="none"), logits

    def _warm_up(self) -> None:
        """Compile, tune, allocate and connect before the clock starts, by a pass that leaves no trace."""
        images, labels = next(readable(self.loader.epoch(0)))
        size = self.cfg.recipe.perturbation_batch or len(labels)
        with kept_buffers(self.model):
            losses, _ = self._losses(images[:size], labels[:size])
            losses.mean().backward()
        self.optimizer.zero_grad()

    # --------------------------------------------------------------------------------------------- the figures

    def _evaluated(self, epoch: int) -> bool:
        return (epoch + 1) % self.cfg.evaluate_every == 0 or epoch + 1 == self.cfg.recipe.epochs

    @property
    def propagations(self) -> float:
        """Work so far, in passes of SGD, of which a backward pass is two thirds."""
        return round((self.forward_passes + 2 * self.backward_passes) / 3, 6)

    def _evaluate(self) -> dict[str, float]:
        scores: dict[str, float] = {}
        for split in self.data.splits:
            with autocast(self.cfg, self.device):
                results = evaluate(self.model, self.data.batches(split), self.cfg.dataset.num_classes, self.world)
            scores |= {f"{split}_{name}": value for name, value in results.items()}
        # The name that tables have for it.
        return {"top5_error" if name == "test_top5_error" else name: value for name, value in scores.items()}

    def _metrics(self, epoch: int) -> dict[str, Any]:
        return {
            "epoch": epoch,
            "step": self.step,
            "lr": self.optimizer.param_groups[0]["lr"],
            "p": self.method.schedule(self.step - 1, self.total_steps),
            **self.sums.means(self.world),
            "sharp_steps": self.sharp_steps,
            "propagations": self.propagations,
            "train_seconds": self.seconds,
            **(self.scores if self._evaluated(epoch) else {}),
        }

    def _figures(self, first: int, begin: float) -> dict[str, str]:
        """For the progress bar."""
        done = (self.step - 1) % len(self.loader) + 1
        speed = (done - first) * self.cfg.recipe.batch_size / (time.perf_counter() - begin)
        figures = {
            "loss": f"{self.sums.means()['train_loss']:.3f}",
            "p": f"{self.method.schedule(self.step - 1, self.total_steps):.2f}",
            "sharp": f"{self.sums.sharp_steps / done:.0%}",
            "images/s": f"{speed:.0f}",
        }
        return figures | ({"test_error": f"{self.scores['test_error']:.2f}%"} if self.scores else {})

    def _summary(self) -> dict[str, Any]:
        return {
            **self.scores,
            "best_test_error": self.best_test_error,
            "train_seconds": self.seconds,
            "total_steps": self.total_steps,
            "sharp_steps": self.sharp_steps,
            "forward_passes": self.forward_passes,
            "backward_passes": self.backward_passes,
            "propagations": self.propagations,
            "extra_propagations_expected": self.method.expected_extra_propagations,
            "extra_propagations_realised": self.propagations / self.total_steps - 1,
            "images_per_second": self.total_steps * self.cfg.recipe.batch_size / self.seconds,
            "checkpoint_seconds": self.checkpoint_seconds,
            "peak_memory_bytes": int(*self.world.max(_peak_memory(self.device))),
            "epochs": self.cfg.recipe.epochs,
            "seed": self.cfg.seed,
        }

    def _raise_if_diverged(self) -> None:
        finite = math.isfinite(float(self.sums.losses["loss"]) + self.scores.get("test_loss", 0.0))
        if any(self.world.max(not finite)):
            raise InputError(
                f"the loss is not finite by step {self.step} of {self.total_steps}: the run has diverged; try a "
                f"smaller optimizer.lr than {self.cfg.optimizer.lr:g}. Record: {self.record.folder}"
            )

    # ------------------------------------------------------------------------------------------- the checkpoint

    def _save(self) -> None:
        """Write what is the same on all ranks, with the buffers of an evaluation, and what each has of its own."""
        begin = time.monotonic()
        compare(self.world, lambda: {"the weights": digest(self.model.parameters())}, f" after step {self.step}")
        own = {name: getattr(self, name).state_dict() for name in self._OWN}
        own["buffers"] = dict(self.model.named_buffers())
        ranks = self.world.gather_on_first(tree_map_only(Tensor, Tensor.cpu, own))
        with averaged_buffers(self.model, self.world):
            state = {
                "id": self.record.id,
                "config": OmegaConf.to_yaml(self.cfg),
                "ranks": ranks,
                **{name: getattr(self, name) for name in self._NUMBERS},
                **{name: getattr(self, name).state_dict() for name in self._SHARED},
            }
            self.world.first(lambda: checkpoint.save(self.record.checkpoint, state))
        self.checkpoint_seconds += time.monotonic() - begin

    def _stop(self, signal_number: int) -> None:
        self._save()
        raise Interrupted(
            f"stopped at step {self.step} of {self.total_steps}; the same command goes on from there. "
            f"Record: {self.record.folder}",
            signal_number,
        )

    def _resume(self) -> None:
        """Go on from the newest checkpoint, if there is one: the first rank reads it, each gets what it had."""
        ranks: list[dict[str, Any]] = []

        def read() -> dict[str, Any] | None:
            state = checkpoint.of_run(self.record, self.world.size)
            if state is not None:
                ranks.extend(state.pop("ranks"))
            return state

        state = self.world.first(read)
        if state is None:
            return
        own = self.world.scatter(ranks)
        with checkpoint.fitting(self.record.checkpoint):
            for name in self._NUMBERS:
                setattr(self, name, type(getattr(self, name))(state[name]))
            for name in self._SHARED:
                getattr(self, name).load_state_dict(state[name])
            for name in self._OWN:
                getattr(self, name).load_state_dict(own[name])
            with torch.no_grad():
                for name, buffer in self.model.named_buffers():
                    buffer.copy_(own["buffers"][name])

    _NUMBERS = (
        *("step", "seconds", "checkpoint_seconds", "sharp_steps", "forward_passes", "backward_passes"),
        *("scores", "best_test_error"),
    )
    _SHARED = ("model", "optimizer", "scaler")
    _OWN = ("method", "sums")


def _peak_memory(device: torch.device) -> int:
    """Of the device, or of the whole process on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
