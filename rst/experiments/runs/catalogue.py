"""Records found by their ids or by the values of their keys, and what differs between them."""

import difflib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rst.experiments.errors import InputError
from rst.experiments.keys import keys_of
from rst.experiments.runs.record import Record
from rst.experiments.sentences import unknown_key
from rst.experiments.spec import RunSpec

NAMED = ("dataset", "optimizer", "schedule", "scheme", "variant")
"""Groups whose key ``name`` says which file of ``configs/`` was chosen; a filter may name the group alone."""

NOT_OF_THE_RESULT = ("paths.", "wandb.", "slurm.", "force", "keep_network", "evaluate", "max_seeds", "datasets")
"""How the names of keys begin that do not change what a run computes."""


def find(runs: Path, words: Sequence[str]) -> list[Record]:
    """The records in a folder that words of a command line ask for, sorted by id.

    Args:
        runs: the folder of the records.
        words: ids, parts of an id that no other id has, or folders of records; and filters such as ``scheme=grst``,
            ``seed=0,1``, ``recipe.epochs=20`` or ``status=done``, of which a record must fit every one. Without an id,
            all records are looked at but those that ``force=true`` has set aside.

    Raises:
        InputError: there is no such record, or no such key.
    """
    filters = [word.split("=", 1) for word in words if "=" in word]
    names = [word for word in words if "=" not in word]
    records = [_named(runs, name) for name in names] or [
        Record(folder) for folder in _folders(runs) if ".old-" not in folder.name
    ]
    values = {record.folder: values_of(record) for record in records} if filters else {}
    known = {key for own in values.values() for key in own} | values_of_none().keys()
    for key, _ in filters:
        if key not in known and (values or key.partition(".")[0] not in NAMED):
            raise InputError(_no_such_key(key, known))
    return [
        record
        for record in records
        if all(_fits(text, values[record.folder].get(key)) for key, text in filters if values)
    ]


def _folders(runs: Path) -> list[Path]:
    return sorted(file.parent for file in runs.glob("*/config.yaml"))


def _named(runs: Path, name: str) -> Record:
    for folder in (runs / name, Path(name).resolve()):
        if name and os.path.isfile(folder / "config.yaml"):  # also where the name is longer than a path may be
            return _of_a_run(Record(folder), runs)
    found = [folder for folder in _folders(runs) if name and name in folder.name and ".old-" not in folder.name]
    if len(found) == 1:
        return Record(found[0])
    if found:
        raise InputError(f"{name} is a part of {len(found)} ids in {runs}, such as {found[0].name}: write more of it.")
    near = difflib.get_close_matches(name, [folder.name for folder in _folders(runs)], n=1)
    raise InputError(f"there is no run {name} in {runs}: " + (f"did you mean {near[0]}?" if near else "runs.py list."))


def _of_a_run(record: Record, runs: Path) -> Record:
    """The record, which may be damaged in the folder of the records; elsewhere its config tells it from other folders.

    Else a folder of the user's that has some config.yaml could be removed as a run.
    """
    if record.folder.resolve().parent != runs.resolve():
        try:
            _ = record.spec
        except InputError as error:
            raise InputError(
                f"{record.folder} is no run: its config.yaml is not that of one; runs.py list shows all runs."
            ) from error
    return record


def _no_such_key(key: str, known: Iterable[str]) -> str:
    if any(other.startswith(f"{key}.") for other in known):
        return f"{key} is a group of keys, of whose values none is its name: write {key}.<key>=<value>."
    return unknown_key(key)


def values_of(record: Record) -> dict[str, Any]:
    """The values of a record by their dotted keys; also its ``status``, and the names of groups such as ``scheme``.

    Raises:
        InputError: its config is damaged.
    """
    spec = record.spec
    return {"status": record.status, "model": spec.model.name or spec.network, **spec.flat()} | {
        group: getattr(spec, group).name for group in NAMED
    }


def values_of_none() -> dict[str, None]:
    """The keys that every record has: those of a spec that have no options, and those that `values_of` adds."""
    return dict.fromkeys([*keys_of(RunSpec), "status", "model", *NAMED])


def _fits(text: str, value: Any) -> bool:
    """Whether a value is one of those that a filter names, commas apart."""
    return any(_equal(one.strip(), value) for one in text.split(","))


def _equal(text: str, value: Any) -> bool:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(text) == value
        except ValueError:
            return False
    return text.lower() == written(value).lower()


def written(value: Any) -> str:
    """A value as a command line has it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(written, value))}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


# ------------------------------------------------------------------------------------------------ what is said of them


def outcome(record: Record) -> dict[str, Any]:
    """Where a run stands: ``status``, epochs, test error [percent], extra passes a step, seconds of training.

    Of a run that is not done, the figures are those of its latest epoch on record. What is not known is None.
    """
    status, epochs = record.status, record.spec.recipe.epochs
    lines = record.metrics
    last = lines[-1] if lines else {}
    found = record.summary if status == "done" else {}
    errors = [line["test_error"] for line in lines if "test_error" in line]
    extra = last["propagations"] / last["step"] - 1 if last.get("step") else None
    return {
        "status": status,
        "epochs": f"{len(lines)}/{epochs}",
        "test_error": found.get("test_error", errors[-1] if errors else None),
        "validation_error": found.get("validation_error", last.get("validation_error")),
        "extra_propagations": found.get("extra_propagations_realised", extra),
        "train_seconds": found.get("train_seconds", last.get("train_seconds")),
    }


def differences(records: Sequence[Record]) -> dict[str, list[Any]]:
    """The keys in which runs differ, each with the value of every run; None where a run lacks the key."""
    values = [record.spec.flat() for record in records]
    keys = dict.fromkeys(key for own in values for key in own if not key.startswith(NOT_OF_THE_RESULT))
    found = {key: [own.get(key) for own in values] for key in keys}
    return {key: row for key, row in found.items() if any(value != row[0] for value in row)}


def by_label(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The runs that differ in their seed alone, under a text of what tells them from the others."""
    parts = [_parts(record.spec) for record in records]
    # What only some runs have, such as the variant where others take no sharp step, follows from something else.
    texts = {key: {own[key] for own in parts if key in own} for own in parts for key in own}
    telling = [key for key, found in texts.items() if len(found) > 1] or ["scheme"]
    groups: dict[str, list[Record]] = {}
    for record, own in zip(records, parts, strict=True):
        groups.setdefault(", ".join(own[key] for key in telling if key in own), []).append(record)
    return groups


def _parts(spec: RunSpec) -> dict[str, str]:
    """What a run may be called by: names, and keys with their values, without those that follow from others."""
    network = spec.model.name or spec.network
    parts: dict[str, str] = {"scheme": spec.scheme.name}
    if spec.mean_p != 0:
        parts |= {"schedule": spec.p.name, "gamma_ratio": f"c={spec.gamma_ratio:.4g}", "variant": spec.variant.name}
    parts |= {"model": network, "dataset": spec.dataset.name, "optimizer": spec.optimizer.name}
    implied = (
        *("schedule.", "scheme.", "variant.name", "network", "seed", "recipe.rho", "device", "dataset.name"),
        *("dataset.digest", "optimizer.name", "model.name", "model.pretrained_digest", *NOT_OF_THE_RESULT),
    )
    for key, value in spec.flat().items():
        if not key.startswith(implied) and (spec.mean_p != 0 or not key.startswith("variant.")):
            # Options of different networks are not compared.
            parts[f"{network}.{key}" if key.startswith("model.") else key] = f"{key}={written(value)}"
    return parts
