"""Train one run, or with -m a sweep of runs: python train.py model=wrn28_10 scheme=grst dataset=cifar100

Every key is in configs/, and `--cfg job` shows the whole config of a command. The record of a run is the folder
results/runs/<id>/: a run that is done prints its result, and one that is not goes on where it stopped.
`evaluate=<run id or checkpoint>` scores a saved network.
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

from rst.experiments.compose import sentence_of, spec_of
from rst.experiments.errors import InputError
from rst.experiments.spec import RunSpec

FIRST = os.environ.get("RANK", "0") == "0"
"""Of the ranks that torchrun starts, this one prints the result."""
FIRST_OF_HOST = os.environ.get("LOCAL_RANK", "0") == "0"
"""Of the ranks of one host, this one says what is wrong with the command."""

failures: list[str] = []
warnings.formatwarning = lambda message, category, *_: f"{category.__name__}: {message}\n"


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(composed: DictConfig) -> None:
    """Do one run. If it fails, its sentence is kept, and the next run of a sweep begins."""
    try:
        spec = spec_of(composed)
    except InputError as error:
        fail(error, FIRST_OF_HOST)
        return
    try:
        said = result(spec)
        if FIRST:
            print(said)
    except InputError as error:
        fail(error, not error.repeated)


def fail(error: InputError, speaks: bool) -> None:
    """Keep the sentence of a run that failed; an empty one where another rank says it."""
    sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    sentence = " ".join([*task_overrides(), "->"] * sweep + [str(error)])
    failures.append(sentence if speaks else "")


def task_overrides() -> list[str]:
    """The run's own overrides as they were written, with their interpolations, which may be what is wrong."""
    return OmegaConf.to_container(HydraConfig.get().overrides.task)  # type: ignore[return-value]


def result(spec: RunSpec) -> str:
    """Do what the spec asks for; the line that says what came out, and where it is."""
    from rst.experiments.training import Interrupted, score, train  # Bad input is answered before libraries load.

    if spec.evaluate is not None:
        scores = score(spec, task_overrides())
        units = {name: " %" if name.endswith("error") else "" for name in scores}
        return f"{spec.evaluate}: " + ", ".join(f"test {name} {scores[name]:.4g}{units[name]}" for name in scores)
    try:
        record = train(spec)
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
        failures.append(sentence_of(error) if FIRST_OF_HOST else "")
    except (ValueError, KeyError, OSError) as error:
        if HydraConfig.initialized():  # Then the error is a fault of the run, not of its input.
            raise
        failures.append(sentence_of(error) if FIRST_OF_HOST else "")
    except KeyboardInterrupt:
        print("train.py: stopped before the first step, with nothing lost.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    for failure in filter(None, failures):
        print(f"train.py: {failure}", file=sys.stderr)
    sys.exit(1 if failures else 0)
