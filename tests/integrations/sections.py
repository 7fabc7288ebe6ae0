"""Executes the code of docs/integrations.md, one section at a time, with a tiny network and made-up data.

Every training has two epochs of six steps, each of four micro-batches, which the processes share.
"""

import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from conftest import ROOT
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler

PAGE = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
LOOP = "A loop of your own"
EPOCHS, STEPS, MICRO_BATCHES, IMAGES = 2, 6, 4, 4


def code(section: str) -> list[str]:
    """The blocks of a section, in order."""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


# What the page takes for granted -------------------------------------------------------------------------------------


class Perceptron(nn.Module):
    """Three layers; the last one is the head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def language_model() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=20, **size))


def images() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(8, generator=generator), torch.randint(3, (), generator=generator))
        for _ in range(STEPS * MICRO_BATCHES * IMAGES)
    ]


def texts() -> list[dict[str, Tensor]]:
    """Sequences of six tokens, of which the loss counts two to six."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(20, (STEPS * MICRO_BATCHES * IMAGES, 6), generator=generator)
    counted = torch.arange(6) < torch.randint(3, 7, (len(tokens), 1), generator=generator)
    labels = tokens.where(counted, -100)
    return [{"input_ids": own, "labels": label} for own, label in zip(tokens, labels, strict=True)]


def image_loss(model: Callable[[Tensor], Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def text_loss(model: Callable[..., Any], batch: dict[str, Tensor]) -> Tensor:
    return model(**batch).loss


# A training ----------------------------------------------------------------------------------------------------------


def train(section: str, precision: str, epochs: int, resume: bool) -> dict[str, Any]:
    """Run a section with these settings on all processes, and return the variables that it leaves."""
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    torch.manual_seed(0)
    forget_accelerator()
    of_texts = section in ("Hugging Face Trainer", "PEFT and LoRA")
    model, dataset = (language_model(), texts()) if of_texts else (Perceptron(), images())
    loader = DataLoader(dataset, batch_size=IMAGES)
    owns_loop = section not in ("Hugging Face Trainer", "Accelerate", "Lightning")
    if section == "Lightning":  # It would shuffle the micro-batches if they had no sampler of this kind.
        sampler = DistributedSampler(list(loader), processes, rank, shuffle=False)
        loader = DataLoader(list(loader), batch_size=None, sampler=sampler)
    variables = {
        "torch": torch,
        "model": model,
        "dataset": dataset,
        "loader": list(loader)[rank::processes] if owns_loop else loader,
        "loss_of": text_loss if of_texts else image_loss,
        "accumulation": MICRO_BATCHES // processes,
        "processes": processes,
        "device": "cpu",
        "precision": precision,
        "epochs": epochs,
        "resume": resume,
    }
    if owns_loop and processes > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    blocks = code(section)
    if owns_loop and section != LOOP:
        blocks = [code(LOOP)[0], *blocks]
    for block in blocks:
        exec(compile(block, section, "exec"), variables)
    return variables


def forget_accelerator() -> None:
    """Accelerate keeps the precision of the first training of a process for all later ones."""
    if "accelerate" in sys.modules:
        sys.modules["accelerate"].state.AcceleratorState._reset_state()


def results(section: str, folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """What trainings in fp32 and in bf16 lead to, straight through and stopped after their first epoch."""
    torch.set_num_threads(1)
    found, environment = {}, dict(os.environ)
    for precision in ("no", "bf16"):
        for name in ("straight", "resumed"):
            own = folder / precision / name
            own.mkdir(parents=True, exist_ok=True)
            os.chdir(own)
            os.environ |= environment  # Lightning takes the number of processes out of it when it is done.
            if name == "resumed":
                train_first_epoch(section, precision)
                os.environ |= environment
            variables = train(section, precision, epochs_of_last_part(section, name), resume=name == "resumed")
            found[precision, name] = outcome(variables)
    return found


def train_first_epoch(section: str, precision: str) -> None:
    if section != "Hugging Face Trainer":
        train(section, precision, 1, resume=False)
        return
    # Its learning rates depend on the number of epochs, so that it trains them all, and forgets the last one.
    train(section, precision, EPOCHS, resume=False)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    shutil.rmtree(f"checkpoints/checkpoint-{EPOCHS * STEPS}", ignore_errors=True)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def epochs_of_last_part(section: str, name: str) -> int:
    """Trainers are told up to which epoch they train, a loop how many epochs are left."""
    return EPOCHS if name == "straight" or section in ("Hugging Face Trainer", "Lightning") else EPOCHS - 1


def outcome(variables: dict[str, Any]) -> dict[str, Any]:
    """The weights that a training leaves, the mean of them where there is one, and how many steps were sharp."""
    trainer = variables.get("trainer")
    method = variables.get("method") or getattr(trainer, "method", None) or trainer.lightning_module.method
    kept = [variables["model"], *([variables["averaged"]] if "averaged" in variables else [])]
    # As numbers, since a tensor that crosses to another process ends with its own.
    weights = [number for own in kept for p in own.parameters() for number in p.detach().flatten().tolist()]
    return {"weights": weights, "t": method.t, "sharp_steps": method.sharp_steps}
