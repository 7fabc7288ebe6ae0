"""Train one run, or with -m a sweep of runs: python train.py model=wrn28_10 scheme=grst dataset=cifar100

Every key is in configs/, and `--cfg job` shows the whole config of a command. The record of a run is the folder
results/runs/<id>/: a run that is done prints its result, and one that is not goes on where it stopped.
`evaluate=<run id or checkpoint>` scores a saved network. docs/own_data.md has images and networks of your own.
"""

import functools
import math
import os
import signal
import sys
import warnings
from collections.abc import Sequence

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rst.experiments.compose import refuse_without_effect, spec_of
from rst.experiments.devices import is_rank, torch_device
from rst.experiments.errors import InputError
from rst.experiments.sentences import sentence_of
from rst.experiments.spec import RunSpec

FIRST = not is_rank() or os.environ["RANK"] == "0"
"""Of the ranks that torchrun starts, this one prints the result."""
FIRST_OF_HOST = not is_rank() or os.environ["LOCAL_RANK"] == "0"
"""Of the ranks of one host, this one says what is wrong with the command."""

HELP = ("--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i")
"""Options that print something and train nothing."""

failures: list[str] = []
warnings.formatwarning = lambda message, category, *_: f"{category.__name__}: {message}\n"


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(composed: DictConfig) -> float:
    """Do one run. If it fails, its sentence is kept, and the next run of a sweep begins.

    What a search by Hydra's Optuna sweeper minimises is returned: the error on held-out training images in percent,
    and infinity for a run that fails.
    """
    try:
        spec = spec_of(composed, task_overrides())
        if not in_sweep():
            refuse_without_effect(spec, task_overrides())
        if searches() and not spec.dataset.validation:
            raise InputError(
                "a search chooses by images held out of training, never by the test set: write dataset.validation=<how "
                "many>."
            )
    except InputError as error:
        fail(error, FIRST_OF_HOST)
        return math.inf
    try:
        said = result(spec)
        if FIRST:
            print(said)
        return validation_error(spec) if searches() else 0.0
    except InputError as error:
        fail(error, not error.repeated)
        return math.inf


def fail(error: InputError, speaks: bool) -> None:
    """Keep the sentence of a run that failed; an empty one where another rank says it."""
    sentence = " ".join([*task_overrides(), "->"] * in_sweep() + [str(error)])
    failures.append(sentence if speaks else "")


def in_sweep() -> bool:
    """Whether the command has -m, and so several runs."""
    return HydraConfig.get().mode == RunMode.MULTIRUN


def searches() -> bool:
    """Whether a sweeper chooses the runs of this sweep by the results of those before."""
    return in_sweep() and "optuna" in HydraConfig.get().sweeper._target_


def validation_error(spec: RunSpec) -> float:
    """The error of the run, which is done, on its held-out training images, in percent."""
    from rst.experiments.runs.record import open_record

    return float(open_record(spec).summary["validation_error"])


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
    known = what_is_known(spec)
    if FIRST and not known:
        say_what_is_scored(spec)
        advise(spec)
    try:
        record = train(spec)
    except Interrupted as stop:
        if FIRST:
            print(f"train.py: {stop}", file=sys.stderr)
        sys.exit(128 + stop.signal_number)
    if not FIRST:
        return ""
    summary = record.summary
    swept = " ".join(task_overrides()) + " -> " if in_sweep() else ""
    where = [f"scale={spec.scale}"] * (spec.scale != "paper") + [f"digits as {spec.dataset.name}"] * spec.stands_in
    what = f" ({', '.join(where)})" if where else ""
    expected = summary["extra_propagations_expected"]
    of_gate = "" if expected is None else f" (expected {expected:.3f})"
    return (
        f"{swept}{record.id}{known}{what}: test error {summary['test_error']:.2f} % after {summary['epochs']} epochs "
        f"and {summary['train_seconds']:.1f} s of training, {summary['extra_propagations_realised']:.3f} extra passes "
        f"a step{of_gate}. Record: {record.folder}"
    )


def what_is_known(spec: RunSpec) -> str:
    """What to say of a run that is done already; nothing of one that is to be trained."""
    from rst.experiments.runs.record import open_record

    record = open_record(spec)
    if spec.force or not record.done:
        return ""
    lacks = spec.measure_sharpness and "lambda_max" not in record.summary
    return f" was done before{' without measure_sharpness' * lacks}, and force=true trains it anew"


def say_what_is_scored(spec: RunSpec) -> None:
    """Say which of the images in a user's own folder are the test images."""
    if spec.dataset.name == "folder":
        from rst.experiments.data.image_folders import layout

        tell(f"{spec.dataset.test_images} of the images are test images: {layout('folder', spec.dataset.root).note}")


@functools.cache
def tell(sentence: str) -> None:
    """Print a sentence on stderr, in a sweep only once."""
    print(f"train.py: {sentence}", file=sys.stderr)


def advise(spec: RunSpec) -> None:
    """Say what a run will take where it has no GPU and needs more than minutes, and what to write instead."""
    if spec.scale != "paper" or torch_device(spec.device).type != "cpu":
        return
    from rst.experiments.data.run_data import RunData
    from rst.experiments.tables.estimate import speed

    found = speed(spec)
    hours = spec.expected_passes * found.seconds / 3600 if found else 0.0
    if found and hours > 0.1:
        RunData(spec, torch_device("cpu"))  # Where images are missing, that is the one thing to say.
        longer = "" if found.device == "cpu" else ", and far longer on the CPU that it has here"
        tell(
            f"this run takes about {hours:,.2g} hours on {found.device}{longer}; write scale=cpu for a small version "
            "of it, or scale=smoke for one of seconds."
        )


def no_option(words: Sequence[str]) -> str:
    """The sentence that answers a word which is meant as an option of this command, and is none; empty without one."""
    known = (*HELP, "--version", "--resolve", "--package", "--run", "--multirun", "--shell-completion")
    known += ("--config-path", "--config-name", "--config-dir", "--experimental-rerun")
    for word in words:
        option = word.partition("=")[0]
        if option.startswith("--") and not any(name.startswith(option) for name in known):
            return f"{option} is no option: write keys without dashes, as in recipe.epochs=10 (--cfg job: all)."
    return ""


if __name__ == "__main__":
    if {*HELP} & {*sys.argv} and hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # So that `train.py --help | head` ends without a traceback.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    if complaint := no_option(sys.argv[1:]):
        print(f"train.py: {complaint}", file=sys.stderr)
        sys.exit(1)
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
