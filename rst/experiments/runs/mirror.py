"""Weights & Biases (W&B) as a mirror of the run record: the run writes to it and never reads it.

The W&B run has the record's id. Its config is the spec and, under ``environment``, what the latest start ran on. It has
one line of history for each epoch, and at the end the record's summary. At the end it also gets copies of the record's
own files, in the folder ``record`` of its files, from which `rst.experiments.runs.wandb_import` makes the record again.
"""

import netrc
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from rst.experiments.runs.record import Record
from rst.experiments.spec import RunSpec

FOLDER = "record"
"""Where a W&B run keeps the copies. Not the top of its files, where W&B writes a ``config.yaml`` of its own."""

FILES = ("config.yaml", "starts.jsonl", "metrics.jsonl", "summary.json")
"""The files of the record that are copied."""


class Mirror:
    """The W&B run of a record that is open for training and has its config and its latest start.

    An error of W&B or of the network gives one warning and ends the mirror; the run goes on without it. A server that
    does not answer costs 10 seconds at the start and 60 seconds at the end, but no step waits for it.
    """

    def __init__(self, spec: RunSpec, record: Record) -> None:
        self._record = record
        self._run: Any = None
        if spec.wandb.mode != "disabled":
            try:
                self._start(spec)
            except Exception as error:  # There is no telling what W&B raises.
                self._give_up(error)

    def _start(self, spec: RunSpec) -> None:
        # W&B would also send reports on itself, and wait 10 seconds for them when the process ends.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        online = spec.wandb.mode == "online" and _has_key()
        self._run = wandb.init(
            mode="online" if online else "offline",
            project=spec.wandb.project,
            group=spec.wandb.group,
            job_type=spec.wandb.job_type,
            tags=[spec.network, spec.dataset.name, spec.scheme.name, spec.scale],
            id=self._record.id,
            name=self._record.id,
            resume="allow",
            reinit="create_new",  # Otherwise an open W&B run of this process would be taken instead.
            dir=self._record.folder,
            config=spec.dump() | {"environment": self._record.environment},
            settings=wandb.Settings(silent=True, init_timeout=10, finish_timeout=60),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        if spec.wandb.mode == "online" and not online:
            warnings.warn(
                f"W&B finds no API key, and keeps this run here: wandb sync {Path(self._run.dir).parent} sends it, and "
                "wandb.mode=offline or disabled leaves this out.",
                stacklevel=4,
            )
        self._copy("config.yaml")  # Says of a run that never finishes which run it was.

    def log(self, metrics: dict[str, Any]) -> None:
        """Add the metrics of an epoch, without those that are None."""
        self._try(lambda: self._run.log({key: value for key, value in metrics.items() if value is not None}))

    def finish(self, summary: dict[str, Any]) -> None:
        """Replace W&B's summary, the latest metrics, by the results, and add the files of the record, which is done."""

        def finish() -> None:
            for key in {*self._run.summary.keys()} - summary.keys():
                if not key.startswith("_"):  # Those are W&B's own.
                    del self._run.summary[key]
            self._run.summary.update(summary)
            self._copy(*FILES)
            self._run.save(f"{self._run.dir}/{FOLDER}/*", base_path=self._run.dir, policy="now")

        self._try(finish)

    def close(self) -> None:
        """End the W&B run, whether or not the run is done."""
        self._try(lambda: self._run.finish())
        self._run = None

    def _copy(self, *names: str) -> None:
        # `wandb.Run.save` alone would make links to the record, which an offline run leaves behind when it is moved.
        folder = Path(self._run.dir) / FOLDER
        folder.mkdir(exist_ok=True)
        for name in names:
            shutil.copyfile(self._record.folder / name, folder / name)

    def _try(self, action: Callable[[], object]) -> None:
        if self._run is not None:
            try:
                action()
            except Exception as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._run = None
        warnings.warn(f"W&B gets no more of this run ({error}); the record is not touched by it.", stacklevel=3)


def _has_key() -> bool:
    """Whether W&B would find an API key: in its environment variable, in its settings or in the file ``.netrc``."""
    import wandb

    settings = wandb.setup().settings
    try:
        known = netrc.netrc().authenticators(urlparse(settings.base_url).hostname or "")
    except (OSError, netrc.NetrcParseError):
        known = None
    return bool(os.environ.get("WANDB_API_KEY") or settings.api_key or known)
