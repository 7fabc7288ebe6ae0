"""From a `RunSpec` to what it describes: network, optimizer, learning rates, method, precision."""

import inspect
import math
import os
import warnings
from collections.abc import Callable

import torch
from hydra.utils import get_method
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

import rst
from rst.experiments.compose import builder_of
from rst.experiments.errors import InputError, bad_input
from rst.experiments.files import file_digest
from rst.experiments.models.weights import load_weights, read_weights
from rst.experiments.spec import RunSpec, refuse_unknown_options
from rst.schedules import Schedule
from rst.streams import stream


def build_model(spec: RunSpec, device: torch.device) -> nn.Module:
    """The network, its weights drawn from a random stream of the seed or, but for its head, those of a file.

    Raises:
        InputError: the network cannot be built with these options, or the weights are not those of such a network.
    """
    torch.manual_seed(stream("init", spec.seed).initial_seed())
    weights = spec.model.pretrained
    with bad_input():
        network: Callable[..., nn.Module] = get_method(builder_of("model", spec.network))
        if weights is True and "pretrained" not in inspect.signature(network).parameters:
            raise InputError(
                f"model.pretrained=true, but there are no weights of {spec.network} to download: write "
                "model.pretrained=<a file>, or take model=timm or model=torchvision."
            )
        refuse_unknown_options("model", network, spec.model.options)
        model = network(**spec.model.options, **({"pretrained": True} if weights is True else {}))
        if isinstance(weights, str):
            if file_digest(weights) != spec.model.pretrained_digest:
                raise InputError(
                    f"model.pretrained={weights} has digest {file_digest(weights)}, not model.pretrained_digest="
                    f"{spec.model.pretrained_digest}: give the file that the run began with, or leave the digest out."
                )
            load_weights(model, read_weights(weights), f"model.pretrained={weights}")
    model = model.to(device)
    return model.to(memory_format=torch.channels_last) if spec.channels_last else model


def build_optimizer(spec: RunSpec, model: nn.Module) -> Optimizer:
    """The base optimizer over all parameters, at the base learning rate."""
    with bad_input("optimizer: "):
        optimizer: Callable[..., Optimizer] = get_method(builder_of("optimizer", spec.optimizer.name))
        refuse_unknown_options("optimizer", optimizer, spec.optimizer.options)
        return optimizer(model.parameters(), **spec.optimizer.options)


def build_lr_scheduler(spec: RunSpec, optimizer: Optimizer) -> LambdaLR:
    """The learning rate of every step: linear warm-up times cosine decay to 0, per step."""
    total_steps, warmup_steps = spec.total_steps, spec.recipe.warmup_epochs * spec.steps_per_epoch
    # A loss scaler may leave out the first optimizer step; the scheduler would warn that it was called too early.
    warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler\.step\(\)` before `optimizer\.step\(\)`")
    return LambdaLR(optimizer, lambda t: lr_decay(t, total_steps, warmup_steps))


def lr_decay(t: int, total_steps: int, warmup_steps: float) -> float:
    """Learning rate of step t over the base rate: ½ (1 + cos πt/T), times t / warmup_steps while that is below 1.

    Warm-up multiplies the cosine, so that the first step of a run with warm-up has the rate 0.
    """
    warmup = min(1.0, t / warmup_steps) if warmup_steps else 1.0
    return warmup * 0.5 * (1 + math.cos(math.pi * t / total_steps))


def build_method(spec: RunSpec, model: nn.Module, schedule: Schedule | None = None) -> rst.RST:
    """RST for the model as it is called in training, so with its `DistributedDataParallel` wrapper.

    Its schedule is that of the run, or another one that is given.
    """
    return rst.RST(
        model,
        rho=spec.variant.rho,
        schedule=spec.p if schedule is None else schedule,
        gamma_ratio=spec.gamma_ratio,
        variant=spec.build_variant(),
        total_steps=spec.total_steps,
        seed=spec.seed,
        normalise_clean=spec.scheme.normalise_clean,
    )


def autocast(spec: RunSpec, device: torch.device) -> torch.autocast:
    """A context in which the network computes in the precision of the run."""
    dtype = getattr(torch, spec.autocast) if spec.autocast else None
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def set_backends(spec: RunSpec) -> None:
    """Tell torch whether kernels must be deterministic, and whether float32 products may be rounded to TF32."""
    if spec.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS refuses deterministic mode without it.
    if torch.are_deterministic_algorithms_enabled() != spec.deterministic:  # Setting it imports torch's compiler.
        torch.use_deterministic_algorithms(spec.deterministic)
    torch.backends.cudnn.benchmark = not spec.deterministic
    torch.backends.cudnn.allow_tf32 = spec.tf32
    torch.backends.cuda.matmul.allow_tf32 = spec.tf32
