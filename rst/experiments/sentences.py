"""What Hydra and pydantic find wrong with a command, in one sentence that names the key, the value and the fix."""

import difflib
import re
from typing import Any

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf.errors import MissingMandatoryValue
from pydantic import ValidationError

from rst.experiments.errors import one_sentence
from rst.experiments.keys import is_part, keys_of
from rst.experiments.spec import RunSpec

_PATHS = r"paths\.\w+|dataset\.root|model\.pretrained|evaluate"
"""Keys whose values are paths."""


def sentence_of(error: Exception) -> str:
    """What the error of a command says, in one sentence; the first of several; else the first line of its text."""
    if isinstance(error, ValidationError):
        return _of_value(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return f"{group}={choice} does not exist: choose one of {', '.join(sorted(error.options))}."
    if isinstance(error, OverrideParseException) and re.fullmatch(r"[\w.~+]+", error.override):
        return f"{error.override} has no value: write key=value, as in scale=smoke."
    if isinstance(error, OverrideParseException) and re.match(rf"({_PATHS})=", error.override):
        key, _, path = error.override.partition("=")
        return f"""{error.override} has signs that Hydra reads only in quotes: write '{key}="{path}"'."""
    if isinstance(error, MissingMandatoryValue) and error.full_key:
        return f"{error.full_key} is missing: write {error.full_key}=<value>."
    sentence = one_sentence(error)
    if sentence.startswith("Config group override must be"):
        return "a group of configs/ is chosen by the name of one of its files: write <group>=<name>, as in scheme=sam."
    if gone := re.match(r"Error resolving interpolation '\$\{scale\}/\$\{(\w+)\}'", sentence):
        return f"{gone[1]} is missing: leave ~{gone[1]} out."
    unknown = re.match(r"Could not override '(.+?)'\.", f"{sentence}.")
    return unknown_key(unknown[1]) if unknown else sentence


def _of_value(error: ValidationError) -> str:
    """The sentence for the first key that pydantic refuses."""
    wrong = error.errors(include_url=False)[0]
    key, fix = ".".join(str(part) for part in wrong["loc"]), wrong["msg"]
    if wrong["type"] == "missing":
        return f"{key} is missing: write {key}=<value>."
    if wrong["type"] == "extra_forbidden":
        return unknown_key(key)
    if wrong["type"] == "literal_error":
        choices = wrong["ctx"]["expected"].replace(" or ", ", ").replace("'", "").replace("None", "null")
        fix = f"write one of {choices}"
    return f"{key}={written(wrong['input'])}: {fix}."


def unknown_key(key: str) -> str:
    """The sentence that answers a key which does not exist, with the one that was meant."""
    if key == "model.name":
        return "model.name is a key of model=timm and model=torchvision alone: write model=timm model.name=<a network>."
    if key == "tables":
        return "there is no key tables: a table is trained by python scripts/sweep.py <its name>."
    groups = [name for name, field in RunSpec.model_fields.items() if is_part(field.annotation)]
    # A name is chosen with its group, as in schedule=linear, so that nobody means the key.
    meant = [name for name in keys_of(RunSpec) if not name.endswith(".name")]
    meant += groups if "." not in key else []
    same = [name for name in meant if name.rpartition(".")[2] == key.rpartition(".")[2]]
    near = difflib.get_close_matches(key.lower(), same or meant, n=1, cutoff=0.0 if same else 0.6)
    if near:
        return f"there is no key {key}: did you mean {near[0]}?"
    if (group := key.partition(".")[0]) in groups:
        return f"there is no key {key} with this choice of {group}: configs/{group} has the keys of each."
    return f"there is no key {key}: python train.py --cfg job shows all."


def written(value: Any) -> Any:
    """The value as a sentence has it: null, as in a command, in place of None."""
    return "null" if value is None else value
