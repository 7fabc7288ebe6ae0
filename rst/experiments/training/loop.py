"""The loop: one run, from its spec to its summary."""

import math
import time
import warnings
from contextlib import ExitStack
from functools import partial
from pathlib import Path
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
from rst.experiments.data.run_data import RunData, in_folders, open_images, readable
from rst.experiments.data.sources import check_root
from rst.experiments.devices import check_devices, is_rank, keep_freed_memory, peak_memory, reset_peak_memory
from rst.experiments.errors import bad_input
from rst.experiments.runs.environment import changes, environment_of
from rst.experiments.runs.mirror import Mirror
from rst.experiments.runs.record import Diverged, Record, open_record
from rst.experiments.spec import RunSpec
from rst.experiments.training import checkpoint
from rst.experiments.training.comparison import compare, facts_of_a_run
from rst.experiments.training.evaluation import evaluate
from rst.experiments.training.flatness import flatness
from rst.experiments.training.metrics import EpochSums
from rst.experiments.training.progress import Progress
from rst.experiments.training.ranks import World, averaged_buffers, joined
from rst.experiments.training.signals import Interrupted, StopPoll, stop_requests
from rst.experiments.training.spawn import spawn
from rst.experiments.training.state import TrainingState
from rst.experiments.training.step import TrainingStep
from rst.schedules import Schedule


def train(spec: RunSpec, show_progress: bool = True) -> Record:
    """Train a run from where its record stands to its summary. A run that is done is returned as it is.

    On several devices it starts as many ranks; in a process that is a rank already it joins the others. Only the first
    rank writes.

    Raises:
        Diverged: the loss is no longer finite; this is an outcome of the run, which its record keeps.
        InputError: bad input, images that are not those of the record, or ranks that differ or have ended.
        Interrupted: SIGINT, SIGTERM, SIGUSR1 or SIGUSR2 asked the run to stop; its checkpoint is written.
    """
    record = open_record(spec)
    if spec.force and not is_rank():
        record.set_aside()
        spec = spec.changed(force=False)
    if not is_rank():
        _refuse_other_images(spec, record)
        if record.done:
            if checkpoint.is_uncut(record.checkpoint):
                checkpoint.cut(record.checkpoint, spec.keep_network)
            return record
        if record.diverged:
            raise Diverged(record.divergence)
    check_devices(spec)
    if spec.devices > 1 and not is_rank():
        return spawn(train, spec.devices, spec, show_progress)
    with joined(spec.devices) as world:
        if spec.force:
            world.first(record.set_aside)
        world.first(lambda: _refuse_other_images(spec, record))
        if world.first(lambda: record.diverged):
            raise Diverged(world.first(lambda: record.divergence))
        if not world.first(lambda: record.done):
            keep_freed_memory()
            run = Run(spec, record, world, show_progress)  # Bad input shows here, before anything is written.
            with ExitStack() as stack:
                world.first(lambda: stack.enter_context(record.training(spec)))
                if not world.first(lambda: record.done):
                    run.to_the_end()
    return record


def _refuse_other_images(spec: RunSpec, record: Record) -> None:
    """Raise `InputError` where a run has its outcome already, but of other images than those that the spec names.

    Images in folders are listed. The name of any other data set says which images it has: they need not be here.
    """
    data = spec.dataset
    if not (record.done or record.diverged):
        return
    if in_folders(spec):
        record.refuse_other_images(open_images(spec).digest)
    elif data.source != "digits" != data.name:
        with bad_input():
            check_root(data.name, Path(data.root), Path(spec.paths.cache))


CHECKPOINT_SHARE = 1 / 200
"""Checkpoints take at most this share of the training time, but for the first one, the last one and that of a stop."""


class Run:
    """A run on this rank: its epochs, and what is evaluated, recorded and shown between them."""

    def __init__(self, spec: RunSpec, record: Record, world: World, show_progress: bool) -> None:
        self.spec, self.record, self.world = spec, record, world
        self.show_progress = show_progress and world.rank == 0
        self.device = world.device(spec.device)
        set_backends(spec)
        reset_peak_memory(self.device)
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
        compare(world, lambda: {"the gate": self.state.method.state_dict()["gate"]})
        forward = torch.compile(parallel) if spec.compile else parallel
        self.saved_at = self.save_seconds = 0.0  # Of the latest checkpoint: training time before it, and its own time.
        self.train_step = TrainingStep(spec, self.state, forward, self.device, world.rank)

    # ------------------------------------------------------------------------------------------------- the epochs

    def to_the_end(self) -> None:
        """Train the epochs that are left, and write metrics, checkpoints and, last, the summary."""
        state, epochs = self.state, self.spec.recipe.epochs
        state.resume(self.record, self.world)
        counters = state.counters
        epochs_done = counters.step // len(self.loader)
        self.world.first(self._record_start)
        self.world.first(lambda: self.record.keep_epochs(epochs_done))
        first_rank = self.world.rank == 0
        mirror = Mirror(self.spec if first_rank else self.spec.changed(wandb={"mode": "disabled"}), self.record)
        progress = Progress(self.spec.total_steps, counters.step, self.record.id, self.show_progress)
        poll = StopPoll(self.world, counters.step)
        self.saved_at = counters.train_seconds
        try:
            self.train_step.warm_up(*next(readable(self.loader.epoch(0))))
            with stop_requests(poll.requests.append):
                for epoch in range(epochs_done, epochs):
                    self._train_epoch(epoch, progress, poll)
                    if self._is_evaluated(epoch):
                        counters.scores = self._evaluate()
                        self._raise_if_diverged()
                        counters.best_test_error = min(counters.best_test_error, counters.scores["test_error"])
                        counters.evaluations += 1
                    metrics = self._metrics(epoch)
                    self.world.first(partial(self.record.append, metrics))
                    mirror.log(metrics)
                    state.sums = EpochSums(self.device)
                    signal_number, due = self.world.max(poll.request, self._checkpoint_is_due)
                    if signal_number and epoch + 1 < epochs:
                        self._stop(int(signal_number))
                    if due or epoch + 1 == epochs:
                        self._save()
            summary = self._summary() | self._flatness()
            self.world.first(lambda: self.record.finish(summary))
            self.world.first(lambda: checkpoint.cut(self.record.checkpoint, self.spec.keep_network))
            mirror.finish(summary)
        finally:
            progress.close()
            mirror.close()

    def _record_start(self) -> None:
        """Add a line to ``starts.jsonl``, and say what has changed since the start before.

        Raises:
            InputError: the images are not those of the start before.
        """
        environment = environment_of(self.spec, self.device, self.data.source.digest)
        self.record.refuse_other_images(environment["data_digest"])
        for before in self.record.starts[-1:]:
            if changed := changes(before, environment):
                warnings.warn(f"the run goes on, but not as it began: {changed}.", stacklevel=2)
        self.record.append_start(environment)

    def _train_epoch(self, epoch: int, progress: Progress, poll: StopPoll) -> None:
        counters = self.state.counters
        first = done_before = counters.step - epoch * len(self.loader)
        begin, signal_number = time.perf_counter(), 0
        for images, labels in readable(self.loader.epoch(epoch, first)):
            self.train_step(images, labels)
            progress.step(partial(self._shown, done_before, begin))
            if poll.is_due(counters.step):
                signal_number = poll.look(counters.step)
                self._raise_if_diverged()
                if counters.step % len(self.loader):  # At its end the epoch is recorded first.
                    begin = self._stop_clock(begin)
                    if signal_number:
                        break
                    if any(self.world.max(self._checkpoint_is_due)):
                        self._save()
                    done_before, begin = counters.step - epoch * len(self.loader), time.perf_counter()
        self._stop_clock(begin)
        self._raise_if_diverged()
        if signal_number and counters.step % len(self.loader):
            self._stop(signal_number)

    def _stop_clock(self, begin: float) -> float:
        """Add the time since ``begin`` to the training time, when the device has done its work; the time now."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.state.counters.train_seconds += now - begin
        return now

    @property
    def _checkpoint_is_due(self) -> bool:
        """Whether training since the latest checkpoint took so long that another one is within `CHECKPOINT_SHARE`."""
        return (self.state.counters.train_seconds - self.saved_at) * CHECKPOINT_SHARE >= self.save_seconds

    def _save(self) -> None:
        begin, self.saved_at = time.monotonic(), self.state.counters.train_seconds
        self.state.save(self.record, self.spec, self.world)
        self.save_seconds = time.monotonic() - begin

    def _stop(self, signal_number: int) -> None:
        self._save()
        raise Interrupted(
            f"stopped at step {self.state.counters.step} of {self.spec.total_steps}; the same command goes on from "
            f"there. Record: {self.record.folder}",
            signal_number,
        )

    def _raise_if_diverged(self) -> None:
        loss = float(self.state.sums.losses["loss"]) + self.state.counters.scores.get("test_loss", 0.0)
        if any(self.world.max(not math.isfinite(loss))):
            step = self.state.counters.step
            sentence = (
                f"the loss is not finite by step {step} of {self.spec.total_steps}: the run has diverged; try a "
                f"smaller optimizer.lr than {self.spec.optimizer.lr:g}. Record: {self.record.folder}"
            )
            self.world.first(lambda: self.record.diverge(step, sentence))
            raise Diverged(sentence)

    # ------------------------------------------------------------------------------------------------ the figures

    def _is_evaluated(self, epoch: int) -> bool:
        return (epoch + 1) % self.spec.evaluate_every == 0 or epoch + 1 == self.spec.recipe.epochs

    def _evaluate(self) -> dict[str, float]:
        """The scores of every split; beside them the error of the epoch's training images, as they were trained on."""
        train_error = self.state.sums.means(self.world)["train_error"]
        assert train_error is not None  # An epoch has steps.
        scores = {"train_error": train_error}
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
            "p": self._p,
            **state.sums.means(self.world),
            "sharp_steps": state.method.sharp_steps,
            "propagations": round(state.method.propagations, 6),
            "train_seconds": counters.train_seconds,
            **(counters.scores if self._is_evaluated(epoch) else {}),
        }

    @property
    def _p(self) -> float | None:
        """p(t) of the latest step; None where the gate decides after the clean pass."""
        p = self.spec.p
        return p(self.state.counters.step - 1, self.spec.total_steps) if isinstance(p, Schedule) else None

    def _shown(self, done_before: int, begin: float) -> dict[str, str]:
        """The figures beside the progress bar; the speed is that since ``begin``, when so many steps were done."""
        state, counters = self.state, self.state.counters
        done = (counters.step - 1) % len(self.loader) + 1
        speed = (done - done_before) * self.spec.recipe.batch_size / (time.perf_counter() - begin)
        figures = {
            "loss": f"{state.sums.means()['train_loss']:.3f}",
            **({"p": f"{self._p:.2f}"} if self._p is not None else {}),
            "sharp": f"{state.sums.sharp_steps / done:.0%}",
            "images/s": f"{speed:.0f}",
        }
        return figures | ({"test_error": f"{counters.scores['test_error']:.2f}%"} if counters.scores else {})

    def _summary(self) -> dict[str, Any]:
        counters, method, total_steps = self.state.counters, self.state.method, self.spec.total_steps
        memories = self.world.gather(peak_memory(self.device))
        return {
            **counters.scores,
            "best_test_error": counters.best_test_error,
            "evaluations": counters.evaluations,
            "train_seconds": counters.train_seconds,
            "total_steps": total_steps,
            "sharp_steps": method.sharp_steps,
            "forward_passes": method.forward_passes,
            "backward_passes": method.backward_passes,
            "propagations": round(method.propagations, 6),
            "extra_propagations_expected": method.expected_extra_propagations if self.spec.mean_p is not None else None,
            "extra_propagations_realised": method.realised_extra_propagations,
            "images_per_second": total_steps * self.spec.recipe.batch_size / counters.train_seconds,
            "checkpoint_seconds": counters.checkpoint_seconds,
            "peak_memory_bytes": max((memory for memory in memories if memory), default=None),
            "epochs": self.spec.recipe.epochs,
            "seed": self.spec.seed,
        }

    def _flatness(self) -> dict[str, Any]:
        """What `measure_sharpness` asks for, with the network as it is evaluated; nothing where it is false."""
        if not self.spec.measure_sharpness:
            return {}
        with averaged_buffers(self.state.model, self.world):
            return self.world.first_at_length(lambda: flatness(self.spec, self.state.model, self.data))
