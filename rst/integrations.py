"""For trainers that own the training loop. It imports none of them: a mixin goes before the trainer's own class."""

import os
from typing import Any

import torch
from torch import Tensor, nn

from rst.method import RST

_Trainer: Any = object  # Of which `TrainerMixin` is a subclass for type checkers, which do not see transformers here.


class TrainerMixin(_Trainer):
    """Sharp steps for ``transformers.Trainer`` and its subclasses: ``class SharpTrainer(TrainerMixin, Trainer)``.

    Each micro-batch has a perturbation of its own, and on several processes each perturbs along its own gradient,
    unless `make_method` asks for ``sync_perturbation``. Accumulation, clipping, precision and learning rates stay the
    Trainer's, and its checkpoints hold the state of the method, ``rst_<process>.pt``. The loss that it logs is that of
    the clean passes.

    Not for DeepSpeed and FSDP1, which keep gradients elsewhere than in ``.grad``, and not for variants that need the
    loss of each sample (ESAM, SSAM-F).

    Attributes:
        method: the `rst.RST` of the training that runs, or ran last; None before.

    Example:
        >>> class SharpTrainer(rst.integrations.TrainerMixin):  # and Trainer after it
        ...     def make_method(self, model, total_steps):
        ...         tail = rst.schedules.tail(0.25)
        ...         return rst.RST(model, rho=0.05, schedule=tail, total_steps=total_steps)
        >>> method = SharpTrainer().make_method(torch.nn.Linear(2, 1), total_steps=100)
        >>> method.expected_extra_propagations
        0.25
    """

    method: RST | None = None
    _training: Any = None  # The Trainer's state that `method` was made for; each training has another.
    _weight: float | Tensor = 1.0  # Of the loss, in the pass that runs.

    def make_method(self, model: nn.Module, total_steps: int) -> RST:
        """The method, for a subclass to define.

        Args:
            model: the model that the Trainer calls: with several processes, wrapped.
            total_steps: T >= 1, the number of optimizer steps of the training.

        Raises NotImplementedError where the subclass does not define it.
        """
        raise NotImplementedError(
            f"{type(self).__name__} needs make_method: def make_method(self, model, total_steps): return rst.RST(...)."
        )

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """The passes of a micro-batch. Returns the loss of the clean one."""
        method, scaler = self._method(model), self.accelerator.scaler
        micro_batches = self.current_gradient_accumulation_steps
        # The Trainer itself divides the loss by the micro-batches, or by what it counts in them, and scales it.
        scale = 1.0 if scaler is None else scaler.scale(torch.ones((), device=self.args.device))
        undone = micro_batches / scale
        losses = []
        try:
            for weight in method.passes(self.accelerator.sync_gradients, 1 / micro_batches, scaler):
                self._weight = weight * undone
                # A copy, because the Trainer takes the labels out where it smooths them.
                losses.append(super().training_step(model, dict(inputs), *args, **kwargs))
        finally:
            self._weight = 1.0
        return losses[0]

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """What the Trainer computes, times the weight of the pass in training."""
        result = super().compute_loss(model, inputs, *args, **kwargs)
        if isinstance(result, tuple):
            return self._weight * result[0], *result[1:]
        return self._weight * result

    def _method(self, model: nn.Module) -> RST:
        if self.method is None or self._training is not self.state:
            self.method, self._training = self.make_method(model, self.state.max_steps), self.state
        return self.method

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        os.makedirs(output_dir, exist_ok=True)  # The first process may not have come here yet.
        torch.save(self._method(self.model_wrapped).state_dict(), self._file(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        if not os.path.exists(file := self._file(checkpoint)):
            raise ValueError(
                f"{file} is missing: resume from a checkpoint that this trainer wrote with as many processes as now."
            )
        saved = torch.load(file, map_location="cpu", weights_only=True)
        self._method(self.model_wrapped).load_state_dict(saved)

    def _file(self, folder: str) -> str:
        return os.path.join(folder, f"rst_{self.args.process_index}.pt")
