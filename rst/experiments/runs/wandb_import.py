"""Records of runs that were trained elsewhere, from the copies at W&B that `rst.experiments.runs.mirror` makes.

The copies are files of the run on W&B's server, or lie in the folder that W&B leaves on a machine without network. They
are read as data: no config or file that is imported can name code to run.
"""

import json
import os
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from rst.experiments.compose import validated
from rst.experiments.errors import InputError, bad_input, one_sentence
from rst.experiments.files import write_atomically
from rst.experiments.runs.identity import run_id
from rst.experiments.runs.mirror import FILES, FOLDER
from rst.experiments.runs.record import Record
from rst.experiments.spec import RunSpec

Fetch = Callable[[Path], Path]
"""Returns the folder with the copied files of a run; it may put them into the empty folder that it is given."""


def import_runs(source: str, runs: Path, group: str | None = None) -> tuple[Counter[str], list[str]]:
    """Make the records that the folder ``runs`` lacks.

    Args:
        source: ENTITY/PROJECT on W&B's server, or a folder that has W&B's run folders at any depth.
        runs: the folder of the records.
        group: take only the runs of this W&B group, which is the table that they were trained for.

    Returns:
        How many runs were "imported", "already there", "not finished" or "refused", and a sentence for each refusal.

    Raises:
        InputError: the source has no runs or cannot be read.
    """
    counts, sentences = Counter[str](), list[str]()
    found = _in_folder(Path(source), group) if os.path.exists(source) else _on_server(source, group)
    for name, fetch in tqdm(found, desc="import", unit="run"):
        try:
            counts[_import_run(name, fetch, runs, source)] += 1
        except InputError as error:
            counts["refused"] += 1
            sentences.append(str(error))
    if not counts:
        raise InputError(f"{source} has no W&B runs" + (f" of group {group}." if group else "."))
    return counts, sentences


def _import_run(name: str, fetch: Fetch, runs: Path, source: str) -> str:
    """Make the record of a run; the word under which the run is counted."""
    record = Record(runs / name)
    if _has_work(record):
        return "already there"
    with tempfile.TemporaryDirectory() as empty:
        copy = Record(fetch(Path(empty)))
        if not copy.done:
            return "not finished"
        spec, starts, metrics, summary = _contents(name, copy)
    starts[-1]["imported_from"] = source
    with record.training(spec):
        if _has_work(record):
            return "already there"
        for file, objects in (("starts.jsonl", starts), ("metrics.jsonl", metrics)):
            write_atomically(record.folder / file, "".join(json.dumps(item) + "\n" for item in objects))
        record.finish(summary)
    return "imported"


def _has_work(record: Record) -> bool:
    """Whether an import would overwrite results, or a run that can go on."""
    return record.done or record.checkpoint.exists()


def _contents(name: str, copy: Record) -> tuple[RunSpec, list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    """The spec, the starts, the metrics and the summary of a run that is done."""
    for file in FILES:
        content = (copy.folder / file).read_bytes() if (copy.folder / file).exists() else b""
        if not content or (file.endswith(".jsonl") and not content.endswith(b"\n")):
            raise InputError(f"{name} lacks its {file}, or the end of it: sync or copy the run again.")
    spec = _spec(name, copy)
    try:
        starts, metrics, summary = copy.starts, copy.metrics, copy.summary
    except InputError as error:
        raise InputError(f"{name} has a damaged file, or one of another version of rst: copy the run again.") from error
    epochs = [line.get("epoch") for line in metrics]
    if len(epochs) != spec.recipe.epochs or epochs != [*range(len(epochs))]:
        raise InputError(f"{name} lacks the metrics of an epoch: sync or copy the run again.")
    return spec, starts, metrics, summary


def _spec(name: str, copy: Record) -> RunSpec:
    """The spec of a run, whose id must be the name under which W&B has the run."""
    try:
        with bad_input():
            values = yaml.safe_load((copy.folder / "config.yaml").read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise ValueError("it is not a mapping")
            spec = validated(values)
            described = run_id(spec)
    except (InputError, yaml.YAMLError) as error:
        sentence = one_sentence(error)
        raise InputError(f"{name} has a config that is not one of this project's: {sentence}") from error
    if described != name:
        raise InputError(f"{name} has the config of {described}: it was edited, or made by another version of rst.")
    return spec


# -------------------------------------------------------------------------------------------- where the copies are


def _in_folder(source: Path, group: str | None) -> Iterator[tuple[str, Fetch]]:
    """The runs with a log of W&B, ``run-<id>.wandb``; a run that was resumed has a folder for each of its starts."""
    starts = defaultdict[str, list[Path]](list)
    for log in sorted(source.rglob("run-*.wandb")):
        starts[log.stem.removeprefix("run-")].append(log.parent / "files" / FOLDER)
    for name, copies in starts.items():
        copy = next((copy for copy in copies if Record(copy).done), copies[-1])
        if group is None or group == _group(copy):
            yield name, _local(copy)


def _local(copy: Path) -> Fetch:
    return lambda _: copy


def _group(copy: Path) -> str | None:
    try:
        group: str | None = yaml.safe_load((copy / "config.yaml").read_text(encoding="utf-8"))["wandb"]["group"]
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError):
        return None
    return group


def _on_server(source: str, group: str | None) -> Iterator[tuple[str, Fetch]]:
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source):
        raise InputError(f"{source} is not a folder here, nor ENTITY/PROJECT on W&B's server: write one of them.")
    with _wandb_answers(f"{source}, which is no folder here,"):
        import wandb

        for run in wandb.Api().runs(source, filters={"group": group} if group else {}):
            yield run.id, partial(_download, run)


def _download(run: Any, empty: Path) -> Path:
    wanted = {f"{FOLDER}/{name}" for name in FILES}
    with _wandb_answers(run.id):
        # A file that the server lacks may be listed, with size 0.
        files = [file for file in run.files(names=sorted(wanted)) if file.name in wanted and file.size]
        if any(file.name == f"{FOLDER}/summary.json" for file in files):
            for file in files:
                file.download(root=str(empty), replace=True).close()
    return empty / FOLDER


@contextmanager
def _wandb_answers(what: str) -> Iterator[None]:
    """Turn an error of W&B or of the network into an `InputError` that says what cannot be imported."""
    try:
        yield
    except ImportError as error:
        raise InputError("wandb is not installed: pip install wandb.") from error
    except Exception as error:  # W&B's errors have no class in common.
        raise InputError(f"{what} cannot be imported: {one_sentence(error)}") from error
