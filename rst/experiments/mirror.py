"""Weights & Biases as a mirror of the run record: it is written to, never read, and never in the way."""

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

            online = cfg.wandb.mode == "online" and _key_at_hand()
            self._run = wandb.init(
                mode="online" if online else "offline",
                project=cfg.wandb.project,
                group=cfg.wandb.group,
                id=record.id,
                name=record.id,
                resume="allow",
                dir=record.folder,
                config=OmegaConf.to_container(cfg),  # type: ignore[arg-type]
                settings=wandb.Settings(silent=True, init_timeout=10, finish_timeout=60),
            )
            self._run.define_metric("*", step_metric="step")
        except Exception as error:  # whatever W&B or the network does, the run goes on
            self._give_up(error)

    def log(self, metrics: dict[str, Any]) -> None:
        """An epoch's metrics."""
        self._try(lambda: self._run.log({key: value for key, value in metrics.items() if value is not None}))

    def finish(self, summary: dict[str, Any]) -> None:
        """The results."""
        self._try(lambda: self._run.summary.update(summary))

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
