"""From a command line, or from the config of a record, to a `RunSpec`. No other room reads ``configs/``."""

import difflib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose as compose_config
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from rst.experiments.errors import InputError, one_sentence
from rst.experiments.spec import RunSpec, steps_per_epoch

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def compose(overrides: Sequence[str]) -> RunSpec:
    """The spec of ``python train.py *overrides``.

    Hydra composes once for all calls that choose the same groups. Values of single keys are set afterwards, which gives
    what Hydra gives and takes a tenth of its time.

    Raises:
        InputError: a group, a key or a value is wrong, or two keys contradict each other.
    """
    values = [text for text in overrides if re.match(r"\w+(\.\w+)+=", text)]
    try:
        composed = _composed(tuple(text for text in overrides if text not in values)).copy()
        for override in OverridesParser.create().parse_overrides(values):
            OmegaConf.update(composed, override.key_or_group, override.value())
        return spec_of(composed)
    except OmegaConfBaseException:
        pass
    except (HydraException, ValueError, KeyError, OSError) as error:
        raise InputError(sentence_of(error)) from error
    try:  # The same in Hydra's own way, whose errors name the key.
        return spec_of(_composed(tuple(overrides)))
    except (HydraException, OmegaConfBaseException, ValueError, KeyError, OSError) as error:
        raise InputError(sentence_of(error)) from error


def spec_of(composed: DictConfig) -> RunSpec:
    """The spec of a config that Hydra has composed, with its interpolations resolved."""
    try:
        plain = {str(key): composed[key] for key in composed if key != "hydra"}
        for key, node in plain.items():
            if OmegaConf.is_config(node):
                plain[key] = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise InputError(sentence_of(error)) from error
    for group, name in (("model", plain["network"]), ("optimizer", plain["optimizer"].get("name"))):
        target = plain[group].pop("_target_", None)
        if (CONFIGS / group / f"{name}.yaml").exists() and target != builder_of(group, name):
            raise InputError(
                f"{group}._target_={target} is not that of configs/{group}/{name}.yaml: write a file of your own in "
                f"configs/{group}, and choose it by {group}=<its name>."
            )
    spec = _with_digest(validated(plain))
    if os.path.isfile(spec.paths.runs):
        raise InputError(f"paths.runs={spec.paths.runs} is a file: write paths.runs=<folder>.")
    return spec


def validated(plain: Mapping[str, Any]) -> RunSpec:
    """The spec that has these values. Raises `InputError` with the first key that is wrong."""
    try:
        return RunSpec.model_validate(plain)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in wrong["loc"])
        if wrong["type"] == "missing":
            raise InputError(f"{key} is missing: write {key}=<value>.") from error
        if wrong["type"] == "extra_forbidden":
            raise InputError(_unknown_key(key)) from error
        value, fix = wrong["input"], wrong["msg"]
        if wrong["type"] == "literal_error":
            fix = "write one of " + wrong["ctx"]["expected"].replace(" or ", ", ").replace("'", "").replace(
                "None", "null"
            )
        raise InputError(f"{key}={'null' if value is None else value}: {fix}.") from error


def _with_digest(spec: RunSpec) -> RunSpec:
    """The spec with the digest of a folder of images that is the user's own, so that its id says which images."""
    data = spec.dataset
    if data.name != "imagenet" or data.source == "digits" or data.digest is not None:
        return spec
    from rst.experiments.data.image_folders import folder_digest  # loads the image library

    digest = folder_digest(data.root, spec.paths.cache)
    return spec if digest is None else spec.changed(dataset={"digest": digest})


@cache
def builder_of(group: str, name: str) -> str:
    """The import path of what builds a network or an optimizer: ``_target_`` in its file of ``configs/``.

    Only this file says it. A record or a download has names and options, so that reading one runs no code of others.
    """
    file = CONFIGS / group / f"{name}.yaml"
    if os.path.basename(name) != name or not file.exists():  # A name from elsewhere may be a path to elsewhere.
        raise InputError(f"there is no {name} in configs/{group}: copy its file there.")
    return str(OmegaConf.load(file)._target_)


# --------------------------------------------------------------------------------------------------- Hydra composes


@cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        composed = compose_config("train", overrides=list(overrides), return_hydra_config=True)
    own: DictConfig = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    own.network = composed.hydra.runtime.choices.model
    OmegaConf.set_struct(own, True)
    return own


def _steps(epochs: int, *, _root_: DictConfig) -> int:
    data = _root_.dataset
    return epochs * steps_per_epoch(data.train_images, data.validation, _root_.recipe.batch_size)


# Configs may say ${steps:E}, the number of steps in E epochs; ${ratio:A,B}, A / B; ${choose:KEY,{...}}, the value of a
# key; and ${tempdir:}.
OmegaConf.register_new_resolver("steps", _steps, replace=True)
OmegaConf.register_new_resolver("ratio", lambda a, b: a / b, replace=True)
OmegaConf.register_new_resolver("choose", lambda key, values: values[key], replace=True)
OmegaConf.register_new_resolver("tempdir", tempfile.gettempdir, replace=True)


# --------------------------------------------------------------------------------------------------- Hydra's errors


def sentence_of(error: Exception) -> str:
    """What Hydra has to say, in one sentence: of a choice or a key that does not exist, with those that do."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return f"{group}={choice} does not exist: choose one of {', '.join(sorted(error.options))}."
    sentence = one_sentence(error)
    unknown = re.fullmatch(r"Could not override '(.+)'\.?", sentence)
    return _unknown_key(unknown[1]) if unknown else sentence


def _unknown_key(key: str) -> str:
    # A name is chosen with its group, as in schedule=linear, so that nobody means the key.
    meant = [name for name in _keys(RunSpec) if not name.endswith(".name")]
    same = [name for name in meant if name.rpartition(".")[2] == key.rpartition(".")[2]]
    near = difflib.get_close_matches(key, same or meant, n=1, cutoff=0.0 if same else 0.6)
    return f"there is no key {key}" + (f": did you mean {near[0]}?" if near else ": see --cfg job for all.")


def _keys(part: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted names of all declared keys."""
    for name, field in part.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
