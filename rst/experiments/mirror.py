"""Weights & Biases as a mirror of the run record: written to, never read, and never in the way of a run.

A run there has the record's config, and its environment under ``environment``; a line of history an epoch, without the
keys whose value is None; and in the end the record's summary. `rst.experiments.imports` makes the record of it again.
"""

import netrc
import os
import warnings
from typing import Any
from urllib.parse import urlparse

from omegaconf import DictConfig, OmegaConf

from rst.experiments.record import Record


class Mirror:
    """One W&B run with the record's id; where W&B fails, one warning and no more of it.

    A server that does not answer costs ten seconds at the start and a minute at the end, never a step.
    """

    def __init__(self, cfg: DictConfig, record: Record) -> None:
        self._run: Any = None
        if cfg.wandb.mode == "disabled":
            return
        try:
            import wandb

            config: Any = OmegaConf.to_container(cfg)
            config["environment"] = record.environment
            online = cfg.wandb.mode == "online" and _key_at_hand()
            self._run = wandb.init(
                mode="online" if online else "offline",
                project=cfg.wandb.project,
                group=cfg.wandb.group,
                job_type=cfg.wandb.job_type,
                tags=[cfg.network, cfg.dataset.name, cfg.scheme.name, cfg.scale],
                id=record.id,
                name=record.id,
                resume="allow",
                dir=record.folder,
                config=config,
                settings=wandb.Settings(silent=True, init_timeout=10, finish_timeout=60),
            )
            self._run.define_metric("step")
            self._run.define_metric("*", step_metric="step")
        except Exception as error:  # whatever W&B or the network does, the run goes on
            self._give_up(error)

    def log(self, metrics: dict[str, Any]) -> None:
        """An epoch's metrics; W&B shows the latest as the summary of a run that is not done."""
        self._try(lambda: self._run.log({key: value for key, value in metrics.items() if value is not None}))

    def finish(self, summary: dict[str, Any]) -> None:
        """The results, and as the summary of the run no more than these."""

        def replace() -> None:
            for key in {*self._run.summary.keys()} - summary.keys():
                if not key.startswith("_"):  # W&B's own
                    del self._run.summary[key]
            self._run.summary.update(summary)

        self._try(replace)

    def close(self) -> None:
        """End the W&B run; the record goes on without it."""
        self._try(lambda: self._run.finish())
        self._run = None

    def _try(self, action: Any) -> None:
        if self._run is not None:
            try:
                action()
            except Exception as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._run = None
        warnings.warn(f"W&B gets no more of this run ({error}); the record is not touched by it.", stacklevel=3)


def _key_at_hand() -> bool:
    """Whether W&B would find an API key, in its environment variable or in the file ``.netrc``."""
    import wandb

    settings = wandb.setup().settings
    try:
        known = netrc.netrc().authenticators(urlparse(settings.base_url).hostname or "")
    except (OSError, netrc.NetrcParseError):
        known = None
    return bool(os.environ.get("WANDB_API_KEY") or settings.api_key or known)
