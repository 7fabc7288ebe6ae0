"""Configs: composed from ``configs/``, resolved, and checked before any work is done."""

import difflib
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rst.schedules import Schedule
from rst.variants import Variant, variant_of

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


class InputError(Exception):
    """Bad input: one sentence that says what is wrong, where, and what to write instead; on one line."""

    repeated = False
    """Whether another rank of the run has raised it already, and tells it."""

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())


class NotAtThisScale(InputError):
    """The scale has no such data set."""


@contextmanager
def bad_input(prefix: str = "") -> Iterator[None]:
    """Errors of the user's input inside, and Hydra's many-line messages, become an `InputError`."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(prefix + one_sentence(error)) from error
    except (ValueError, KeyError, OSError) as error:  # Hydra's own, too, where it composes
        raise InputError(prefix + one_sentence(error)) from error


def load_config(overrides: Sequence[str]) -> DictConfig:
    """The config of ``python train.py *overrides``, resolved and checked.

    Hydra composes once for all calls that choose the same groups; values of single keys are set afterwards, which is
    what Hydra does too, and ten times as fast.
    """
    values = [text for text in overrides if re.match(r"\w+(\.\w+)+=", text)]
    with bad_input():
        try:
            composed = _composed(tuple(text for text in overrides if text not in values)).copy()
            for override in OverridesParser.create().parse_overrides(values):
                OmegaConf.update(composed, override.key_or_group, override.value())
        except OmegaConfBaseException:
            composed = _composed(tuple(overrides))  # raises again, in Hydra's words
    return resolve(composed)


@cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        composed = compose("train", overrides=list(overrides), return_hydra_config=True)
    own: DictConfig = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    own.network = composed.hydra.runtime.choices.model
    OmegaConf.set_struct(own, True)
    return own


def resolve(composed: DictConfig) -> DictConfig:
    """A plain, checked copy of a composed config, without interpolations and without Hydra's own node."""
    with bad_input():
        plain = {key: composed[key] for key in composed if key != "hydra"}
        for key in plain:
            if OmegaConf.is_config(plain[key]):
                plain[key] = OmegaConf.to_container(plain[key], resolve=True, throw_on_missing=True)
    cfg = OmegaConf.create(plain)
    check(cfg)
    return cfg


# ----------------------------------------------------------------------------------------- what follows from a config


def schedule_of(cfg: DictConfig) -> Schedule:
    """p(t)."""
    with bad_input("schedule: "):
        schedule: Schedule = instantiate(cfg.schedule)
    return schedule


def steps_per_epoch(cfg: DictConfig) -> int:
    """Whole batches in the training images that are not held out."""
    return (cfg.dataset.train_images - cfg.dataset.validation) // cfg.recipe.batch_size


def total_steps(cfg: DictConfig) -> int:
    """T."""
    return cfg.recipe.epochs * steps_per_epoch(cfg)


def gamma_ratio(cfg: DictConfig) -> float:
    """c = γ/ρ, with "auto" resolved to 1 / mean of p(t)."""
    if cfg.scheme.gamma_ratio != "auto":
        return float(cfg.scheme.gamma_ratio)
    return 1 / schedule_of(cfg).mean(total_steps(cfg))


def variant(cfg: DictConfig) -> Variant:
    """The variant with its options, which are all keys of its group but the name and rho."""
    options = {key: value for key, value in cfg.variant.items() if key not in ("name", "rho")}
    with bad_input("variant: "):
        return variant_of(cfg.variant.name, **options)


def _steps(epochs: int, *, _root_: DictConfig) -> int:
    return epochs * steps_per_epoch(_root_)


# What configs may say: ${steps:EPOCHS}, the number of steps in some epochs; ${ratio:A,B}, A/B; and ${tempdir:}.
OmegaConf.register_new_resolver("steps", _steps, replace=True)
OmegaConf.register_new_resolver("ratio", lambda a, b: a / b, replace=True)
OmegaConf.register_new_resolver("tempdir", tempfile.gettempdir, replace=True)


# ------------------------------------------------------------------------------------------------------- the checks


Rule = tuple[Callable[[Any], bool], str]
"""Whether a value fits, and what to write where it does not."""


def _number(low: float, high: float = math.inf, integer: bool = False) -> Rule:
    def fits(value: Any) -> bool:
        number = isinstance(value, int if integer else (int, float)) and not isinstance(value, bool)
        return number and low <= value <= high and value < math.inf

    upper = f" to {high:g}" if high < math.inf else ""
    return fits, f"{'an integer' if integer else 'a number'} from {low:g}{upper}"


def _optional(rule: Rule) -> Rule:
    return lambda value: value is None or rule[0](value), f"null or {rule[1]}"


def _one_of(*values: Any) -> Rule:
    return lambda value: value in values, "one of " + ", ".join("null" if v is None else str(v) for v in values)


_FLAG: Rule = (lambda value: isinstance(value, bool), "true or false")
_TEXT: Rule = (lambda value: isinstance(value, str) and value != "", "a text")


def _list_of(rule: Rule, what: str) -> Rule:
    return lambda value: OmegaConf.is_list(value) and len(value) > 0 and all(map(rule[0], value)), what


_SIZES = _list_of(_number(1, integer=True), "a list of integers from 1")

RULES: dict[str, Rule] = {
    "seed": _number(0, integer=True),
    "max_seeds": _optional(_number(1, integer=True)),
    "device": _TEXT,
    "devices": _number(1, integer=True),
    "autocast": _one_of(None, "bfloat16", "float16"),
    "channels_last": _FLAG,
    "compile": _FLAG,
    "deterministic": _FLAG,
    "evaluate": _optional(_TEXT),
    "evaluate_every": _number(1, integer=True),
    "paths.data": _TEXT,
    "paths.cache": _TEXT,
    "paths.runs": _TEXT,
    "wandb.mode": _one_of("online", "offline", "disabled"),
    "wandb.project": _TEXT,
    "wandb.group": _optional(_TEXT),
    "wandb.job_type": _optional(_TEXT),
    "network": _TEXT,
    "scale": _TEXT,
    "datasets": _optional(_list_of(_TEXT, "a list of names")),
    "dataset.name": _one_of("cifar10", "cifar100", "imagenet", "digits"),
    "dataset.mean": _list_of(_number(-math.inf), "a list of numbers, one a channel"),
    "dataset.std": _list_of(
        (lambda value: _number(0)[0](value) and value > 0, ""), "a list of numbers above 0, one a channel"
    ),
    "dataset.root": _TEXT,
    "dataset.source": _one_of("auto", "parquet", "torchvision", "digits"),
    "dataset.num_classes": _number(2, integer=True),
    "dataset.channels": _number(1, integer=True),
    "dataset.image_size": _number(1, integer=True),
    "dataset.train_images": _number(1, integer=True),
    "dataset.test_images": _number(1, integer=True),
    "dataset.validation": _number(0, integer=True),
    "dataset.label_noise": _number(0, 1),
    "augmentation.flip": _FLAG,
    "augmentation.crop_padding": _number(0, integer=True),
    "augmentation.cutout": _number(0, integer=True),
    "augmentation.cutout_per_image": _FLAG,
    "augmentation.mixup_alpha": _number(0),
    **{f"model.{key}": _number(1, integer=True) for key in ("depth", "width", "widen_factor", "heads", "hidden")},
    "model.patch_size": _number(1, integer=True),
    "model.blocks": _SIZES,
    "model.widths": _SIZES,
    "model.alpha": _number(0),
    "model.dropout": _number(0, 1),
    "optimizer.lr": _number(0),
    "optimizer.momentum": _number(0, 1),
    "optimizer.nesterov": _FLAG,
    "optimizer.weight_decay": _number(0),
    "scheme.name": _one_of("sgd", "sam", "gnr", "rst", "grst"),
    "scheme.gamma_ratio": (lambda value: value == "auto" or _number(0)[0](value), "auto or a number from 0"),
    "scheme.normalise_clean": _FLAG,
    "variant.rho": _number(0),
    "recipe.epochs": _number(1, integer=True),
    "recipe.batch_size": _number(1, integer=True),
    "recipe.perturbation_batch": _optional(_number(1, integer=True)),
    "recipe.clip_norm": _optional(_number(0)),
    "recipe.warmup_epochs": _number(0),
    "recipe.l2": _number(0),
}


def check(cfg: DictConfig) -> None:
    """Raise `InputError` at the first key that is out of its range, or at odds with another."""
    for key, (fits, wanted) in RULES.items():
        group, _, name = key.rpartition(".")
        if group in ("model", "optimizer") and name not in cfg[group]:
            continue  # a key of another network or optimizer
        value = OmegaConf.select(cfg, key)
        if not fits(value):
            raise InputError(f"{key}={value}: write {wanted}.")

    scheme, recipe, data = cfg.scheme, cfg.recipe, cfg.dataset
    schedule, needed = schedule_of(cfg), {"sgd": 0.0, "sam": 1.0, "gnr": 1.0}.get(scheme.name)
    if needed is not None and not (schedule.steady and schedule.mean() == needed):
        raise InputError(
            f"scheme={scheme.name} means p = {needed:g} at every step, but the schedule is {schedule}: "
            "leave the schedule out, or take scheme=rst or scheme=grst."
        )
    if scheme.name in ("sam", "rst") and scheme.gamma_ratio != 1:
        raise InputError(
            f"scheme={scheme.name} means scheme.gamma_ratio=1, not {scheme.gamma_ratio}: "
            f"take scheme={'gnr' if scheme.name == 'sam' else 'grst'}."
        )
    if scheme.name == "gnr" and scheme.gamma_ratio == "auto":
        raise InputError("scheme.gamma_ratio=auto would make GNR into SAM: give a number.")

    if cfg.datasets is not None and data.name not in cfg.datasets:
        raise NotAtThisScale(
            f"scale={cfg.scale} has no {data.name}, only {', '.join(cfg.datasets)}: take one of them or another scale."
        )
    if not len(data.mean) == len(data.std) == data.channels:
        raise InputError(
            f"dataset.channels={data.channels}, but dataset.mean and dataset.std have {len(data.mean)} and "
            f"{len(data.std)} numbers: give one a channel."
        )
    for own, theirs in (("num_classes", "num_classes"), ("in_channels", "channels"), ("image_size", "image_size")):
        if cfg.model.get(own, data[theirs]) != data[theirs]:
            raise InputError(
                f"model.{own}={cfg.model[own]} is not dataset.{theirs}={data[theirs]}: leave model.{own} out."
            )
    if len(cfg.model.get("blocks", [])) != len(cfg.model.get("widths", [])):
        raise InputError(f"model.blocks={cfg.model.blocks} and model.widths={cfg.model.widths} differ in length.")
    kept = data.train_images - data.validation
    if recipe.batch_size > kept:
        raise InputError(
            f"recipe.batch_size={recipe.batch_size} is larger than the {kept} training images "
            "(dataset.train_images - dataset.validation): take a smaller batch or more images."
        )
    if recipe.perturbation_batch and recipe.batch_size % recipe.perturbation_batch:
        raise InputError(
            f"recipe.perturbation_batch={recipe.perturbation_batch} does not divide "
            f"recipe.batch_size={recipe.batch_size}: take a divisor, or null for the whole batch."
        )
    if recipe.warmup_epochs > recipe.epochs:
        raise InputError(
            f"recipe.warmup_epochs={recipe.warmup_epochs} is longer than the run of "
            f"recipe.epochs={recipe.epochs}: shorten the warm-up."
        )
    if scheme.name == "grst" and schedule.mean(total_steps(cfg)) == 0:
        raise InputError(
            f"scheme=grst on schedule {schedule} never takes a sharp step in {total_steps(cfg)} steps: "
            "take another schedule, or scheme=sgd."
        )
    if os.path.isfile(cfg.paths.runs):
        raise InputError(f"paths.runs={cfg.paths.runs} is a file: write paths.runs=<folder>.")
    variant(cfg)
    check_devices(cfg, torch_device(cfg))


def refuse_foreign_code(cfg: DictConfig) -> None:
    """Raise `InputError` where a config from elsewhere names code of others: Hydra calls whatever a config names."""
    for node, builders in (("model", "rst.models"), ("schedule", "rst.schedules")):
        own, *nested = _mappings(OmegaConf.to_container(cfg[node], resolve=True))
        target = own.get("_target_")
        if nested or not re.fullmatch(rf"{re.escape(builders)}\.\w+", str(target)):
            raise InputError(f"its {node} is {target}, and not of {builders} alone.")


def _mappings(value: Any) -> Iterator[dict[Any, Any]]:
    """The mappings in a value: itself, and all that are nested in it or in its lists."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _mappings(item)


def check_devices(cfg: DictConfig, device: torch.device) -> None:
    """Raise `InputError` where ``devices`` are not there, or do not get whole perturbations."""
    size = cfg.recipe.perturbation_batch or cfg.recipe.batch_size
    perturbations = cfg.recipe.batch_size // size
    if perturbations % cfg.devices:
        fitting = [str(n) for n in range(1, perturbations + 1) if perturbations % n == 0]
        raise InputError(
            f"devices={cfg.devices} do not divide the {perturbations} perturbations of a step, recipe.batch_size="
            f"{cfg.recipe.batch_size} / recipe.perturbation_batch={size}: take devices={' or '.join(fitting)}, or a "
            "smaller recipe.perturbation_batch."
        )
    here = int(os.environ.get("LOCAL_WORLD_SIZE", cfg.devices))
    if cfg.devices > 1 and device.type == "cuda" and (device.index is not None or torch.cuda.device_count() < here):
        raise InputError(
            f"device={cfg.device} is not {here} devices, of which there are {torch.cuda.device_count()} here: "
            "take fewer devices, and leave device out."
        )
    if cfg.devices > 1 and device.type not in ("cpu", "cuda"):
        raise InputError(f"devices={cfg.devices} of kind {device.type} cannot work together: take device=cpu.")


def torch_device(cfg: DictConfig) -> torch.device:
    """The device of the run: "auto" is CUDA where there is one."""
    if cfg.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(cfg.device)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device={cfg.device} does not exist here: take device=cpu or device=auto.") from error
    return device


def one_sentence(error: Exception) -> str:
    """What Hydra has to say: of an unknown choice or key with what there is, of a failed builder in its own words."""
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        return str(error.__cause__).rstrip(".") + "."
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return f"{group}={choice} does not exist: choose one of {', '.join(sorted(error.options))}."
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
    unknown = re.fullmatch(r"Could not override '(.+)'\.?", first)
    if unknown:
        near = difflib.get_close_matches(unknown[1], RULES, n=1)
        return f"there is no key {unknown[1]}" + (f": did you mean {near[0]}?" if near else ": see --cfg job for all.")
    return first if first.endswith("?") else first.rstrip(".") + "."
