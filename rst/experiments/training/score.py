"""``evaluate=``: the test scores of a network that a run has saved."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from rst.experiments.build import autocast, build_model, set_backends
from rst.experiments.compose import key_of, validated
from rst.experiments.data.run_data import RunData
from rst.experiments.devices import torch_device
from rst.experiments.errors import InputError, one_sentence
from rst.experiments.runs.catalogue import find
from rst.experiments.spec import RunSpec
from rst.experiments.training import checkpoint
from rst.experiments.training.evaluation import evaluate

WHERE = ("evaluate", "device", "dataset.root", "paths", "wandb")
"""Keys that say where to score, not what."""


def score(spec: RunSpec, overrides: Sequence[str]) -> dict[str, float]:
    """The test scores of the network that ``spec.evaluate`` names.

    It names a run by its id, or a part of it that no other run has, or by its folder; or a checkpoint file. Network and
    data are those of the checkpoint.

    Raises:
        InputError: there is no such checkpoint, or its run has kept none; or the overrides of the command line ask for
            another run.
    """
    path = _checkpoint_file(spec)
    device = torch_device(spec.device)
    content = checkpoint.load(path)
    saved = _saved_spec(path, content["config"], spec)
    for key in map(key_of, overrides):
        if not key.startswith(WHERE) and _value(spec, key) != _value(saved, key):
            raise InputError(f"{path} is of another config: leave {key} out of the command, or evaluate another run.")
    set_backends(saved)
    data = RunData(saved, device)
    without = {"pretrained": None, "pretrained_digest": None}
    model = build_model(saved.changed(model=without), device)  # Its weights are those of the checkpoint.
    with checkpoint.fitting(path):
        model.load_state_dict(content["model"])
    with autocast(saved, device):
        return evaluate(model, data.batches("test"), saved.dataset.num_classes)


def _value(spec: RunSpec, key: str) -> Any:
    """The value of a dotted key, or of a group; None where there is none."""
    if key == "model":  # Two networks may have the same options.
        return spec.network, spec.model
    value: Any = spec.dump()
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _saved_spec(path: Path, text: Any, spec: RunSpec) -> RunSpec:
    """The spec that the checkpoint holds, to be scored where ``spec`` says."""
    try:
        saved = validated(yaml.safe_load(text))
        named = spec.dataset.root != spec.paths.data
        # A user's own folder has no place where it is usually looked for: it is where it was, unless the command says.
        root = spec.dataset.root if named or saved.dataset.name != "folder" else saved.dataset.root
        return saved.changed(paths=spec.paths.model_dump(), dataset={"root": root}, device=spec.device)
    except Exception as error:  # The text may have any content.
        raise InputError(f"{path} has a config that is not one of this project's: {one_sentence(error)}") from error


def _checkpoint_file(spec: RunSpec) -> Path:
    given = Path(str(spec.evaluate))
    record = None
    with suppress(InputError, OSError, ValueError):  # The text may be no path at all, and no part of an id.
        for path in (given, given / "checkpoint.pt"):
            if path.is_file():
                return path
        [record] = find(Path(spec.paths.runs), [str(given.parent if given.name == "checkpoint.pt" else given)])
        if record.checkpoint.is_file():
            return record.checkpoint
    if record is not None and record.done:
        raise InputError(
            f"evaluate={spec.evaluate} is a run that has kept no network: train it anew with force=true and "
            "keep_network=true."
        )
    raise InputError(
        f"evaluate={spec.evaluate} is neither a checkpoint, nor the folder of a run, nor a run id in {spec.paths.runs}."
    )
