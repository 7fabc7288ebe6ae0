"""From a command line, or from the config of a record, to a `RunSpec`. No other room reads ``configs/``."""

import getpass
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose as compose_config
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from rst.experiments.devices import is_rank
from rst.experiments.errors import InputError
from rst.experiments.files import file_digest
from rst.experiments.keys import is_part
from rst.experiments.sentences import sentence_of, written
from rst.experiments.spec import RunSpec, steps_per_epoch

PROJECT = Path(__file__).resolve().parents[2]
CONFIGS = PROJECT / "configs"


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
        return spec_of(composed, overrides)
    except OmegaConfBaseException:
        pass
    except (HydraException, ValueError, KeyError, OSError) as error:
        raise InputError(sentence_of(error)) from error
    try:  # The same in Hydra's own way, whose errors name the key.
        return spec_of(_composed(tuple(overrides)), overrides)
    except (HydraException, OmegaConfBaseException, ValueError, KeyError, OSError) as error:
        raise InputError(sentence_of(error)) from error


def spec_of(composed: DictConfig, overrides: Sequence[str]) -> RunSpec:
    """The spec of a config that Hydra has composed from these overrides, with its interpolations resolved."""
    try:
        plain = {str(key): composed[key] for key in composed if key != "hydra"}
        _refuse_half_choices(plain, overrides)
        if plain["dataset"].get("name") == "folder":
            _follow_folder(plain["dataset"], plain["paths"], overrides)
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
    _use_named_images(plain["dataset"], overrides)
    spec = _with_digests(validated(plain))
    if os.path.isfile(spec.paths.runs):
        raise InputError(f"paths.runs={spec.paths.runs} is a file: write paths.runs=<folder>.")
    return spec


def _refuse_half_choices(plain: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Refuse a name without the keys that belong to it, and a value in place of all keys of a group."""
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        group = "model" if key == "network" else key.removesuffix(".name")
        if group != key and key != "model.name" and (CONFIGS / group).is_dir():
            choices = sorted(file.stem for file in (CONFIGS / group).glob("*.yaml"))
            meant = value if value in choices else f"<one of {', '.join(choices)}>"
            raise InputError(f"{override} changes a name, and not the keys that belong to it: write {group}={meant}.")
    for group, field in RunSpec.model_fields.items():
        if is_part(field.annotation) and group not in plain:
            raise InputError(f"{group} is missing: leave ~{group} out.")
        if is_part(field.annotation) and not OmegaConf.is_dict(plain[group]):
            key = next(iter(field.annotation.model_fields), "<key>")
            value = written(plain[group])
            raise InputError(f"{group}={value}: {group} is a group of keys: write {group}.{key}=<value>.")


def validated(plain: Mapping[str, Any]) -> RunSpec:
    """The spec that has these values. Raises `InputError` with the first key that is wrong."""
    try:
        return RunSpec.model_validate(plain)
    except ValidationError as error:
        raise InputError(sentence_of(error)) from error


def _with_digests(spec: RunSpec) -> RunSpec:
    """The spec with the digests of images and weights that are the user's own, so that its id says which they are."""
    data, model = spec.dataset, spec.model
    if data.name == "imagenet" and data.source != "digits" and data.digest is None:
        from rst.experiments.data.folder_cache import folder_facts  # loads the image library
        from rst.experiments.data.image_folders import is_there

        if is_there(data.name, data.root):
            digest = folder_facts(data.name, data.root, spec.paths.cache).digest
            spec = spec if digest is None else spec.changed(dataset={"digest": digest})
    if isinstance(model.pretrained, str) and model.pretrained_digest is None:
        spec = spec.changed(model={"pretrained_digest": file_digest(model.pretrained)})
    return spec


def _follow_folder(data: DictConfig, paths: DictConfig, overrides: Sequence[str]) -> None:
    """Fill in what follows from a user's own folder of images: its classes, its images and their digest.

    A scale may ask for more images than there are, and gets all; a command that does so is refused where they are read.
    """
    for group, key, node in (("dataset", "root", data), ("paths", "cache", paths)):
        if not isinstance(node.get(key), str) or not node[key]:
            raise InputError(
                f"{group}.{key}={written(node.get(key))}: write {group}.{key}=<folder"
                f"{', with a folder of images for each class' * (key == 'root')}>."
            )
    from rst.experiments.data.folder_cache import folder_facts

    root, cache = os.path.expanduser(data.root), os.path.expanduser(paths.cache)
    facts = folder_facts("folder", root, cache)
    if facts.classes < 2:
        raise InputError(f"dataset.root={root} has one folder of images: give one for each of at least two classes.")
    keys = [key_of(override) for override in overrides]
    for key, found in (("train_images", facts.train), ("test_images", facts.test)):
        asked = data.get(key)
        if asked is None or (f"dataset.{key}" not in keys and isinstance(asked, int) and asked > found):
            data[key] = found
    if data.get("num_classes") is None:
        data.num_classes = facts.classes
    if data.get("digest") is None:
        data.digest = facts.digest
    if data.source == "digits" and "dataset.source" not in keys:
        data.source = "auto"


def _use_named_images(dataset: dict[str, Any], overrides: Sequence[str]) -> None:
    """Let images that the command names win over the digits of a small scale; refuse where they cannot be used."""
    keys = [key_of(override) for override in overrides]
    named = next((key for key in ("dataset.root", "paths.data") if key in keys), None)
    if named is None or dataset["source"] != "digits":
        return
    if dataset["name"] == "digits":
        raise InputError(f"{named} has no effect on dataset=digits, whose images are embedded: leave {named} out.")
    if "dataset.source" in keys:
        raise InputError(f"{named} has no effect with dataset.source=digits: leave one of the two out.")
    dataset["source"] = "auto"


def refuse_without_effect(spec: RunSpec, overrides: Sequence[str]) -> None:
    """Refuse an option of the method that the command of one run names, where the run does not use it.

    This is not for a table or a sweep: their overrides are for all of their runs, of which some use an option.

    Raises:
        InputError: the run never takes a sharp step, or its sharp steps mix in no clean gradient (c = γ/ρ is 1).
    """
    if spec.mean_p == 0:
        unused = r"variant(\..+)?|recipe\.rho|scheme\.(gamma_ratio|normalise_clean)"
        reason = f"scheme={spec.scheme.name} on schedule {spec.p}, which takes no sharp step"
        fix = "take scheme=sam, scheme=rst or scheme=grst"
    elif spec.gamma_ratio == 1:
        unused, fix = r"scheme\.normalise_clean", "take scheme=gnr or scheme=grst"
        reason = f"scheme={spec.scheme.name} of c = 1, which mixes no clean gradient into a sharp step"
    else:
        return
    for override in overrides:
        if re.fullmatch(unused, key_of(override)):
            raise InputError(f"{override} has no effect with {reason}: leave it out, or {fix}.")


def key_of(override: str) -> str:
    """The key of a word of a command line, as in "recipe.epochs" of "++recipe.epochs=3"."""
    return override.split("=")[0].lstrip("+~")


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
    with _hydra():
        composed = compose_config("train", overrides=list(overrides), return_hydra_config=True)
    own: DictConfig = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    own.network = composed.hydra.runtime.choices.model
    OmegaConf.set_struct(own, True)
    return own


@contextmanager
def _hydra() -> Iterator[None]:
    """Hydra on `CONFIGS`, also within Hydra's own main function, where it refuses to be set up a second time."""
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = outer


def _steps(epochs: int, *, _root_: DictConfig) -> int:
    data = _root_.dataset
    return epochs * steps_per_epoch(data.train_images, data.validation, _root_.recipe.batch_size)


def _from_here(path: str) -> str:
    """A path below the project's folder, as seen from the current folder, so that no record has an absolute path."""
    return os.path.relpath(PROJECT / path)


def _sweep_folder() -> str:
    """A temporary folder of this user alone: that of another user could not be written to."""
    user = os.getuid() if hasattr(os, "getuid") else getpass.getuser()
    return os.path.join(tempfile.gettempdir(), f"rst-sweep-{user}")


def _ranks() -> int:
    return int(os.environ["WORLD_SIZE"]) if is_rank() else 1


# Configs may say ${steps:E}, the number of steps in E epochs; ${ratio:A,B}, A / B; ${choose:KEY,{...}}, the value of a
# key; ${project:PATH}, a path in the project's folder; ${ranks:}, how many ranks torch's launcher has started; and
# ${sweepdir:}, a temporary folder.
OmegaConf.register_new_resolver("steps", _steps, replace=True)
OmegaConf.register_new_resolver("ratio", lambda a, b: a / b, replace=True)
OmegaConf.register_new_resolver("choose", lambda key, values: values[key], replace=True)
OmegaConf.register_new_resolver("project", _from_here, replace=True)
OmegaConf.register_new_resolver("ranks", _ranks, replace=True)
OmegaConf.register_new_resolver("sweepdir", _sweep_folder, replace=True)
