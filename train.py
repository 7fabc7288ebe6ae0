"""Train one run, or with -m a sweep of runs: python train.py model=wrn28_10 scheme=grst dataset=cifar100

Every key is in configs/; `--cfg job` shows the whole config of a command. The record of a run is results/runs/<id>/:
a run that is done prints its result, one that is not goes on where it stopped. `evaluate=<run id or checkpoint>`
scores a saved network.
"""

import os
import signal
import sys
import warnings

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rst.experiments.config import InputError, one_sentence, resolve

FIRST = os.environ.get("RANK", "0") == "0"
FIRST_OF_HOST = os.environ.get("LOCAL_RANK", "0") == "0"
"""Of the ranks that torchrun starts, one says what comes out, and one of a host what is wrong with its command."""

failures: list[str] = []
warnings.formatwarning = lambda message, category, *_: f"{category.__name__}: {message}\n"


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(composed: DictConfig) -> None:
    """One run; where it fails, the sentence is kept and the next run of a sweep begins."""
    try:
        cfg = resolve(composed)
    except InputError as error:
        fail(error, FIRST_OF_HOST)
        return
    try:
        said = result(cfg)
        if FIRST:
            print(said)
    except InputError as error:
        fail(error, not error.repeated)


def fail(error: InputError, speaks: bool) -> None:
    """Keep the sentence of a run that fails, empty where another rank says it."""
    sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    sentence = " ".join([*task_overrides(), "->"] * sweep + [str(error)])
    failures.append(sentence if speaks else "")


def task_overrides() -> list[str]:
    """The run's own overrides, as they were written: with interpolations, which may be what is wrong."""
    return OmegaConf.to_container(HydraConfig.get().overrides.task)  # type: ignore[return-value]


def result(cfg: DictConfig) -> str:
    """Do what the config asks for; the line that says what came out and where it is."""
    from rst.training import Interrupted, score, train  # only now: bad input is answered before libraries load

    if cfg.evaluate is not None:
        scores = score(cfg, task_overrides())
        units = {name: " %" if name.endswith("error") else "" for name in scores}
        return f"{cfg.evaluate}: " + ", ".join(f"test {name} {scores[name]:.4g}{units[name]}" for name in scores)
    try:
        record = train(cfg)
    except Interrupted as stop:
        if FIRST:
            print(f"train.py: {stop}", file=sys.stderr)
        sys.exit(128 + stop.signal_number)
    if not FIRST:
        return ""
    summary = record.summary
    return (
        f"{record.id}: test error {summary['test_error']:.2f} % after {summary['epochs']} epochs and "
        f"{summary['train_seconds']:.1f} s of training, {summary['extra_propagations_realised']:.3f} extra passes a "
        f"step (expected {summary['extra_propagations_expected']:.3f}). Record: {record.folder}"
    )


if __name__ == "__main__":
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        main()
    except (HydraException, OmegaConfBaseException) as error:
        failures.append(one_sentence(error) if FIRST_OF_HOST else "")
    except (ValueError, KeyError, OSError) as error:
        if HydraConfig.initialized():  # of the run, and no bad input
            raise
        failures.append(one_sentence(error) if FIRST_OF_HOST else "")
    except KeyboardInterrupt:
        print("train.py: stopped before the first step, with nothing lost.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    for failure in filter(None, failures):
        print(f"train.py: {failure}", file=sys.stderr)
    sys.exit(1 if failures else 0)
