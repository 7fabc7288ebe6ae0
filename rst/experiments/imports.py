"""Run records of runs that were made elsewhere, from W&B's copy of them (`rst.experiments.mirror`).

The copy is on W&B's server, or in the logs that W&B left on a machine without network. A record that is made from it
is the run's own, less the checkpoint and, in the metrics, the keys whose value was None.
"""

import json
import os
import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from rst.experiments.config import InputError, bad_input, refuse_foreign_code
from rst.experiments.identity import run_id
from rst.experiments.record import SUMMARY_KEYS, Record, write_atomically


class Run(Protocol):
    """What is read of a run of ``wandb.Api``."""

    @property
    def id(self) -> str:
        """The id of its record."""

    @property
    def group(self) -> str | None:
        """The table that it was trained for."""

    @property
    def config(self) -> Mapping[str, Any]:
        """Of the record, with the record's environment under ``environment``."""

    @property
    def summary(self) -> Mapping[str, Any]:
        """Of the record, once it is done."""

    def scan_history(self) -> Iterable[Mapping[str, Any]]:
        """The epochs' metrics."""


def import_runs(source: str, runs: Path, group: str | None = None) -> tuple[Counter[str], list[str]]:
    """Make the records that ``runs`` lacks; how many runs were imported or not, and why some were refused.

    ``source`` is ENTITY/PROJECT, or a folder with W&B's logs anywhere in it. Counted are "imported", "already there",
    "not finished" and "refused". Raises `InputError` where there is nothing to read.
    """
    counts, sentences = Counter[str](), list[str]()
    with _readable(source):
        for run in tqdm(_runs(source, group), desc=source, unit="run"):
            try:
                if group in (None, run.group):
                    counts[_import_run(run, runs, source)] += 1
            except InputError as error:
                counts["refused"] += 1
                sentences.append(str(error))
    if not counts:
        raise InputError(f"{source} has no W&B runs" + (f" of group {group}." if group else "."))
    return counts, sentences


def _import_run(run: Run, runs: Path, source: str) -> str:
    """Make the record of a run; the word under which the run is counted."""
    reported = run.summary
    if not all(key in reported for key in SUMMARY_KEYS):
        return "not finished"
    cfg, record = _config(run), Record(runs / run.id)
    if _at_hand(record):
        return "already there"

    summary = _numbers(reported)
    lines = map(_numbers, run.scan_history())
    # A run that went on from a checkpoint has some epochs twice, of which the later is the record's.
    by_epoch = {line["epoch"]: line for line in lines if "epoch" in line}
    missing = [epoch for epoch in range(summary["epochs"]) if epoch not in by_epoch]
    if missing:
        raise InputError(
            f"{run.id} lacks {len(missing)} of its {summary['epochs']} epochs, of which epoch {missing[0]} is the "
            "first: give the logs of all starts of the run, in one folder."
        )
    environment = {**run.config.get("environment", {}), "imported_from": source}
    with record.training(cfg):
        if _at_hand(record):
            return "already there"
        record.keep_epochs(0)
        for epoch in range(summary["epochs"]):
            record.append(by_epoch[epoch])
        write_atomically(record.folder / "environment.json", json.dumps(environment, indent=2))
        record.finish(summary)
    return "imported"


def _at_hand(record: Record) -> bool:
    """Whether the folder holds what an import would overwrite: results, or a run that can go on."""
    return record.done or record.checkpoint.exists()


def _config(run: Run) -> DictConfig:
    """The config of the run's record, which must have the run's id."""
    try:
        with bad_input():
            cfg = OmegaConf.create({key: value for key, value in _own(run.config).items() if key != "environment"})
            refuse_foreign_code(cfg)
            described = run_id(cfg)
    except (InputError, AttributeError, LookupError, TypeError) as error:
        raise InputError(f"{run.id} has a config that is not one of this project's: {error}") from error
    if described != run.id:
        raise InputError(f"{run.id} has the config of {described}: it was edited, or made by another version of rst.")
    return cfg


def _own(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without what W&B adds."""
    return {key: value for key, value in values.items() if not key.startswith("_")}


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without None, which W&B's server may have where there is no value; it has texts for inf and nan."""
    known = {key: value for key, value in sorted(_own(values).items()) if value is not None}
    return {key: float(value) if isinstance(value, str) else value for key, value in known.items()}


# ---------------------------------------------------------------------------------------------- W&B's server and logs


@contextmanager
def _readable(source: str) -> Iterator[None]:
    """Errors of W&B, of its network and of files become an `InputError`."""
    try:
        import wandb
    except ImportError as error:
        raise InputError("wandb is not installed: pip install wandb.") from error
    try:
        yield
    except (wandb.Error, ValueError, OSError) as error:
        where = source if os.path.exists(source) else f"{source}, which is no folder here,"
        raise InputError(f"{where} cannot be imported: {(str(error) or repr(error)).splitlines()[0]}") from error


def _runs(source: str, group: str | None) -> Iterable[Run]:
    folder = Path(source)
    if source and os.path.exists(folder):
        logs = sorted(folder.rglob("run-*.wandb"), key=lambda log: log.name)
        return (OfflineRun(list(starts)) for _, starts in groupby(logs, key=lambda log: log.name))
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source):
        raise InputError(f"{source} is not a folder here, nor ENTITY/PROJECT on W&B's server: write one of them.")
    import wandb

    runs: Iterable[Run] = wandb.Api().runs(source, filters={"group": group} if group else {})
    return runs


class OfflineRun:
    """A run as the server would have it, from W&B's logs: one of each start of the run."""

    def __init__(self, logs: list[Path]) -> None:
        self.id = logs[0].stem.removeprefix("run-")
        self._logs = logs

    @property
    def group(self) -> str | None:
        """W&B's group."""
        return next((message.run.run_group for message in self._of("run")), None)

    @property
    def config(self) -> dict[str, Any]:
        """Of the latest start."""
        return _values(item for message in self._of("run") for item in message.run.config.update)

    @property
    def summary(self) -> dict[str, Any]:
        """What is left of it in the end."""
        summary: dict[str, Any] = {}
        for message in self._of("summary"):
            summary |= _values(message.summary.update)
            for item in message.summary.remove:
                summary.pop(item.key, None)
        return summary

    def scan_history(self) -> Iterator[dict[str, Any]]:
        """What was logged, in its order."""
        return (_values(message.history.item) for message in self._of("history"))

    @cached_property
    def _messages(self) -> list[Any]:
        starts = [list(messages(log)) for log in self._logs]
        starts.sort(key=lambda start: next((m.run.start_time.ToNanoseconds() for m in start if _kind(m) == "run"), 0))
        return [message for start in starts for message in start]

    def _of(self, kind: str) -> Iterator[Any]:
        return (message for message in self._messages if _kind(message) == kind)


def _kind(message: Any) -> str:
    return message.WhichOneof("record_type")


def _values(items: Iterable[Any]) -> dict[str, Any]:
    return {item.key or item.nested_key[0]: json.loads(item.value_json) for item in items}


HEADER = b":W&B\xe1\xbe\x00"
"""How W&B's log begins; the last byte is the version of its format."""
BLOCK = 32768


def messages(log: Path) -> Iterator[Any]:
    """The messages, wandb's ``Record``, that W&B had written when it ended, or was killed.

    The format is that of LevelDB's logs: a message is one entry or, since none crosses the bounds of a block, several.
    Before each stand its checksum, its length and its part of the message: 1 all, 2 the first, 3 a middle, 4 the last.
    """
    from wandb.proto.wandb_internal_pb2 import Record as Message  # type: ignore[attr-defined]

    content, position, message = log.read_bytes(), len(HEADER), b""
    if content[:position] not in (HEADER, b""):
        raise InputError(f"{log} is in a format that is unknown here: run `wandb sync`, and import from the server.")
    while position + 7 <= len(content):
        left = BLOCK - position % BLOCK
        if left < 7:  # too little for an entry
            position += left
            continue
        checksum, length, part = struct.unpack_from("<IHB", content, position)
        part_and_entry = content[position + 6 : position + 7 + length]
        position += 7 + length
        if position > len(content):  # it was killed here
            return
        if zlib.crc32(part_and_entry) != checksum:
            raise InputError(f"{log} is damaged before byte {position}: copy it again.")
        message += part_and_entry[1:]
        if part in (1, 4):
            yield Message.FromString(message)
            message = b""
