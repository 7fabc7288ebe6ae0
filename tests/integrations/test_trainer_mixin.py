"""`TrainerMixin` in a Hugging Face Trainer, against the plain Trainer and against a loop written out by hand."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sections
import torch
from textbook import assert_bitwise, mixed_gradient
from torch import Tensor, nn

import rst
from rst import schedules
from rst.integrations import TrainerMixin

pytestmark = pytest.mark.integrations

BATCH, ACCUMULATION, STEPS, LR, RHO = 4, 2, 4, 0.1, 0.05
DATA = sections.texts()


class Sharp(TrainerMixin):
    """A Trainer whose method has the options of the test."""

    method_options: dict[str, Any]

    def make_method(self, model: nn.Module, total_steps: int) -> rst.RST:
        return rst.RST(model, RHO, total_steps=total_steps, **self.method_options)


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., Any]:
    """Train a tiny language model for four steps of two micro-batches by SGD without clipping."""
    from transformers import Trainer, TrainingArguments

    def train(mixin: type | None = Sharp, scaler: Any = None, resume: Any = None, **options: Any) -> Any:
        own = {"gradient_accumulation_steps": ACCUMULATION, "max_steps": STEPS, "save_strategy": "no"}
        own |= {name: options.pop(name) for name in list(options) if hasattr(TrainingArguments, name)}
        torch.manual_seed(0)
        sections.forget_accelerator()
        arguments = TrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=BATCH,
            learning_rate=LR,
            lr_scheduler_type="constant",
            optim="sgd",
            max_grad_norm=0,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            **own,
        )
        bases = (Trainer,) if mixin is None else (mixin, Trainer)
        trainer = type("OwnTrainer", bases, {})(
            sections.language_model(), arguments, train_dataset=DATA, eval_dataset=DATA
        )
        trainer.method_options = {"schedule": schedules.always()} | options
        trainer.accelerator.scaler, trainer.seen, collate = scaler, [], trainer.data_collator
        trainer.data_collator = lambda examples: trainer.seen.append(collate(examples)) or trainer.seen[-1]
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return train


def weights(trainer: Any) -> Tensor:
    return nn.utils.parameters_to_vector(trainer.model.parameters()).detach()


def by_hand(trainer: Any, c: float) -> Tensor:
    """SAM on each micro-batch, whose losses are sums over its tokens, divided by the tokens of the step."""
    torch.manual_seed(0)
    model = sections.language_model()
    theta = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    for step in range(STEPS):
        batches = trainer.seen[step * ACCUMULATION : (step + 1) * ACCUMULATION]
        tokens = sum((batch["labels"][:, 1:] != -100).sum() for batch in batches)
        total = torch.zeros_like(theta)
        for batch in batches:
            share = (batch["labels"][:, 1:] != -100).sum() / tokens
            total += share * mixed_gradient(model, lambda batch=batch: model(**batch).loss, RHO, c)
        theta = theta - LR * total
        nn.utils.vector_to_parameters(theta, model.parameters())
    return theta


def test_without_sharp_steps_it_is_the_plain_trainer_bit_for_bit(trained):
    assert_bitwise(weights(trained(schedule=schedules.never())), weights(trained(None)))


@pytest.mark.parametrize("c", [1.0, 2.0])
def test_each_micro_batch_is_perturbed_by_itself_and_weighs_as_many_tokens_as_it_has(trained, c):
    trainer = trained(gamma_ratio=c)
    torch.testing.assert_close(weights(trainer), by_hand(trainer, c), rtol=1e-4, atol=1e-6)


def test_the_work_is_counted_in_passes_over_the_whole_batch_of_a_step(trained):
    method = trained(schedule=schedules.periodic(2)).method
    assert (method.t, method.sharp_steps) == (STEPS, STEPS // 2)
    assert method.propagations == pytest.approx(STEPS * 1.5)


def test_the_loss_that_it_logs_and_that_of_the_evaluation_are_unweighted(trained):
    own = {"logging_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    plain = trained(None, **own).state.log_history
    sharp = trained(gamma_ratio=5.0, **own).state.log_history
    assert sharp[0]["loss"] == pytest.approx(plain[0]["loss"])  # of the first step, at the same weights
    losses = [entry["eval_loss"] for entry in sharp if "eval_loss" in entry]
    assert losses[-1] == pytest.approx(trained(gamma_ratio=5.0).evaluate()["eval_loss"])


def test_labels_that_the_trainer_takes_out_for_smoothing_are_there_in_the_perturbed_pass(trained):
    assert torch.isfinite(weights(trained(label_smoothing_factor=0.1))).all()


@pytest.mark.parametrize(
    "options",
    [{"normalise_clean": True, "gamma_ratio": 2.0}, {"schedule": schedules.ae_sam(), "gamma_ratio": 2.0}],
    ids=["normalised", "adaptive gate"],
)
def test_a_loss_scale_changes_nothing_where_the_method_must_know_it(trained, options):
    scaled = trained(scaler=torch.amp.GradScaler("cpu", init_scale=1024.0), **copy.deepcopy(options))
    plain = trained(**options)
    assert scaled.method.sharp_steps == plain.method.sharp_steps > 0
    assert_bitwise(weights(scaled), weights(plain))


def test_a_second_training_starts_at_its_first_step(trained):
    trainer = trained()
    trainer.train()
    assert trainer.method.t == STEPS


@pytest.mark.parametrize("variant", ["friendly", "looksam"])
def test_a_variant_that_keeps_something_from_step_to_step_resumes_bit_for_bit(trained, tmp_path, variant):
    options = {"variant": variant, "save_strategy": "steps", "save_steps": 2}
    straight = trained(**options)
    resumed = trained(resume=str(tmp_path / "checkpoint-2"), **options)
    assert_bitwise(weights(resumed), weights(straight))


def test_a_checkpoint_of_another_schedule_is_refused_in_a_sentence(trained, tmp_path):
    trained(save_strategy="steps", save_steps=2)
    with pytest.raises(ValueError, match="use the schedule of the saved training"):
        trained(resume=str(tmp_path / "checkpoint-2"), schedule=schedules.constant(0.5))


def test_a_checkpoint_without_the_state_of_the_method_is_refused_in_a_sentence(trained, tmp_path):
    trained(save_strategy="steps", save_steps=2)
    (tmp_path / "checkpoint-2" / "rst_0.pt").unlink()
    with pytest.raises(ValueError, match=r"rst_0.pt is missing: resume from a checkpoint that this trainer wrote"):
        trained(resume=str(tmp_path / "checkpoint-2"))


def test_a_trainer_without_make_method_is_told_to_define_it(trained):
    with pytest.raises(NotImplementedError, match=r"needs make_method: def make_method\(self, model, total_steps\)"):
        trained(TrainerMixin)


def test_a_variant_that_needs_the_loss_of_each_sample_is_refused(trained):
    with pytest.raises(ValueError, match="ESAM needs the loss of each sample"):
        trained(variant="esam")
