"""The loop: one run, from its spec to its summary."""

import math
import resource
import sys
import time
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch

from rst.experiments.build import (
    autocast,
    build_lr_scheduler,
    build_method,
    build_model,
    build_optimizer,
    set_backends,
)
from rst.experiments.data.run_data import RunData, readable
from rst.experiments.devices import check_devices
from rst.experiments.errors import InputError
from rst.experiments.runs.environment import environment_of
from rst.experiments.runs.mirror import Mirror
from rst.experiments.runs.record import Record, open_record
from rst.experiments.spec import RunSpec
from rst.experiments.training.comparison import compare, digest, facts_of_a_run
from rst.experiments.training.evaluation import evaluate
from rst.experiments.training.metrics import EpochSums
from rst.experiments.training.progress import Progress
from rst.experiments.training.ranks import World, is_rank, joined
from rst.experiments.training.signals import Interrupted, StopPoll, stop_requests
from rst.experiments.training.spawn import spawn
from rst.experiments.training.state import TrainingState
from rst.experiments.training.step import TrainingStep


def train(spec: RunSpec, show_progress: bool = True) -> Record:
    """Train a run from where its record stands to its summary. A run that is done is returned as it is.

    On several devices it starts as many ranks; in a process that is a rank already it joins the others. Only the first
    rank writes.

    Raises:
        InputError: bad input, a loss that is not finite, or ranks that differ or have ended.
        Interrupted: SIGINT, SIGTERM, SIGUSR1 or SIGUSR2 asked the run to stop; its checkpoint is written.
    """
    record = open_record(spec)
    if record.done and not is_rank():
        return record
    check_devices(spec)
    if spec.devices > 1 and not is_rank():
        return spawn(train, spec.devices, spec, show_progress)
    with joined(spec.devices) as world:
        if not world.first(lambda: record.done):
            run = Run(spec, record, world, show_progress)  # Bad input shows here, before anything is written.
            with ExitStack() as stack:
                world.first(lambda: stack.enter_context(record.training(spec)))
                if not world.first(lambda: record.done):
                    run.to_the_end()
    return record


CHECKPOINT_SHARE = 1 / 200
"""Checkpoints take at most this share of the training time, but for the first and the last one."""


class Run:
    """A run on this rank: its epochs, and what is evaluated, recorded and shown between them."""

    def __init__(self, spec: RunSpec, record: Record, world: World, show_progress: bool) -> None:
        self.spec, self.record, self.world = spec, record, world
        self.show_progress = show_progress and world.rank == 0
        self.device = world.device(spec.device)
        set_backends(spec)
        with world.host_first():
            self.data = RunData(spec, self.device, world.rank, world.size, world.local_size)
        self.loader = self.data.loader()

        model = build_model(spec, self.device)
        compare(world, lambda: facts_of_a_run(spec, self.device, self.data, model))
        parallel = world.parallel(model, self.device)
        optimizer = build_optimizer(spec, model)
        self.state = TrainingState(
            model,
            optimizer,
            build_lr_scheduler(spec, optimizer),
            torch.amp.GradScaler(self.device.type, enabled=spec.autocast == "float16"),
            build_method(spec, parallel),
            EpochSums(self.device),
        )
        compare(world, lambda: {"the gate": digest([self.state.method.gate])})
        forward = torch.compile(parallel) if spec.compile else parallel
        self.train_step = TrainingStep(spec, self.state, forward, self.device, world.rank)

    # ------------------------------------------------------------------------------------------------- the epochs

    def to_the_end(self) -> None:
        """Train the epochs that are left, and write metrics, checkpoints and, last, the summary."""
        state, epochs = self.state, self.spec.recipe.epochs
        state.resume(self.record, self.world)
        counters = state.counters
        epochs_done = counters.step // len(self.loader)
        self.world.first(lambda: self.record.keep_epochs(epochs_done))
        environment = environment_of(self.spec, self.device, self.data.source.digest)
        self.world.first(lambda: self.record.append_start(environment))
        first_rank = self.world.rank == 0
        mirror = Mirror(self.spec if first_rank else self.spec.changed(wandb={"mode": "disabled"}), self.record)
        progress = Progress(self.spec.total_steps, counters.step, self.record.id, self.show_progress)
        poll = StopPoll(self.world, counters.step)
        saved_at, cost = counters.train_seconds, 0.0  # Of the latest checkpoint, in seconds of training and to write.
        try:
            self.train_step.warm_up(*next(readable(self.loader.epoch(0))))
            with stop_requests(poll.requests.append):
                for epoch in range(epochs_done, epochs):
                    self._train_epoch(epoch, progress, poll)
                    if self._is_evaluated(epoch):
                        counters.scores = self._evaluate()
                        self._raise_if_diverged()
                        counters.best_test_error = min(counters.best_test_error, counters.scores["test_error"])
                    metrics = self._metrics(epoch)
                    self.world.first(partial(self.record.append, metrics))
                    mirror.log(metrics)
                    state.sums = EpochSums(self.device)
                    due = (counters.train_seconds - saved_at) * CHECKPOINT_SHARE >= cost
                    signal_number, save = self.world.max(poll.request, due)
                    if signal_number and epoch + 1 < epochs:
                        self._stop(int(signal_number))
                    if save or epoch + 1 == epochs:
                        begin, saved_at = time.monotonic(), counters.train_seconds
                        state.save(self.record, self.spec, self.world)
                        cost = time.monotonic() - begin
            summary = self._summary()
            self.world.first(lambda: self.record.finish(summary))
            mirror.finish(summary)
        finally:
            progress.close()
            mirror.close()

    def _train_epoch(self, epoch: int, progress: Progress, poll: StopPoll) -> None:
        counters = self.state.counters
        first, begin = counters.step - epoch * len(self.loader), time.perf_counter()
        signal_number = 0
        for images, labels in readable(self.loader.epoch(epoch, first)):
            self.train_step(images, labels)
            progress.step(lambda: self._shown(first, begin))
            if poll.is_due(counters.step):
                signal_number = poll.look(counters.step)
                self._raise_if_diverged()
                if signal_number and counters.step % len(self.loader):  # A whole epoch is recorded before the stop.
                    break
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        counters.train_seconds += time.perf_counter() - begin
        self._raise_if_diverged()
        if signal_number and counters.step % len(self.loader):
            self._stop(signal_number)

    def _stop(self, signal_number: int) -> None:
        self.state.save(self.record, self.spec, self.world)
        raise Interrupted(
            f"stopped at step {self.state.counters.step} of {self.spec.total_steps}; the same command goes on from "
            f"there. Record: {self.record.folder}",
            signal_number,
        )

    def _raise_if_diverged(self) -> None:
        loss = float(self.state.sums.losses["loss"]) + self.state.counters.scores.get("test_loss", 0.0)
        if any(self.world.max(not math.isfinite(loss))):
            raise InputError(
                f"the loss is not finite by step {self.state.counters.step} of {self.spec.total_steps}: the run has "
                f"diverged; try a smaller optimizer.lr than {self.spec.optimizer.lr:g}. Record: {self.record.folder}"
            )

    # ------------------------------------------------------------------------------------------------ the figures

    def _is_evaluated(self, epoch: int) -> bool:
        return (epoch + 1) % self.spec.evaluate_every == 0 or epoch + 1 == self.spec.recipe.epochs

    def _evaluate(self) -> dict[str, float]:
        scores: dict[str, float] = {}
        for split in self.data.splits:
            with autocast(self.spec, self.device):
                batches = self.data.batches(split)
                results = evaluate(self.state.model, batches, self.spec.dataset.num_classes, self.world)
            scores |= {f"{split}_{name}": value for name, value in results.items()}
        # Tables know the top-5 error of the test images by this name.
        return {"top5_error" if name == "test_top5_error" else name: value for name, value in scores.items()}

    def _metrics(self, epoch: int) -> dict[str, Any]:
        """A line of ``metrics.jsonl``. ``lr`` and ``p`` are those of the epoch's last step."""
        state, counters = self.state, self.state.counters
        [decay] = state.lr_scheduler.lr_lambdas
        return {
            "epoch": epoch,
            "step": counters.step,
            "lr": state.lr_scheduler.base_lrs[0] * decay(counters.step - 1),
            "p": state.method.schedule(counters.step - 1, self.spec.total_steps),
            **state.sums.means(self.world),
            "sharp_steps": counters.sharp_steps,
            "propagations": counters.propagations,
            "train_seconds": counters.train_seconds,
            **(counters.scores if self._is_evaluated(epoch) else {}),
        }

    def _shown(self, first: int, begin: float) -> dict[str, str]:
        """The figures beside the progress bar."""
        state, counters = self.state, self.state.counters
        done = (counters.step - 1) % len(self.loader) + 1
        speed = (done - first) * self.spec.recipe.batch_size / (time.perf_counter() - begin)
        figures = {
            "loss": f"{state.sums.means()['train_loss']:.3f}",
            "p": f"{state.method.schedule(counters.step - 1, self.spec.total_steps):.2f}",
            "sharp": f"{state.sums.sharp_steps / done:.0%}",
            "images/s": f"{speed:.0f}",
        }
        return figures | ({"test_error": f"{counters.scores['test_error']:.2f}%"} if counters.scores else {})

    def _summary(self) -> dict[str, Any]:
        counters, total_steps = self.state.counters, self.spec.total_steps
        return {
            **counters.scores,
            "best_test_error": counters.best_test_error,
            "train_seconds": counters.train_seconds,
            "total_steps": total_steps,
            "sharp_steps": counters.sharp_steps,
            "forward_passes": counters.forward_passes,
            "backward_passes": counters.backward_passes,
            "propagations": counters.propagations,
            "extra_propagations_expected": self.state.method.expected_extra_propagations,
            "extra_propagations_realised": counters.propagations / total_steps - 1,
            "images_per_second": total_steps * self.spec.recipe.batch_size / counters.train_seconds,
            "checkpoint_seconds": counters.checkpoint_seconds,
            "peak_memory_bytes": int(*self.world.max(_peak_memory(self.device))),
            "epochs": self.spec.recipe.epochs,
            "seed": self.spec.seed,
        }


def _peak_memory(device: torch.device) -> int:
    """The peak of the memory in use, in bytes: of the device, or on CPU of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
