"""`RunSpec`: everything that determines one run, typed, checked and frozen.

Its parts are the groups of ``configs/`` (`rst.experiments.keys`), and its fields are their keys: ``spec.recipe.epochs``
is ``recipe.epochs``. `rst.experiments.compose` makes a spec from a command line or a record. Every other room takes
a spec or a part of one, and none reads a config.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import model_validator

import rst
from rst.experiments.errors import InputError, NotAtThisScale, bad_input
from rst.experiments.keys import (
    Augmentation,
    Count,
    Dataset,
    Device,
    Flag,
    Integer,
    Model,
    Optimizer,
    OptionalCount,
    OptionalText,
    Part,
    Paths,
    Recipe,
    ScheduleOptions,
    Scheme,
    Slurm,
    Text,
    VariantOptions,
    Wandb,
    wanted,
)
from rst.schedules import AESAM, Schedule
from rst.variants import NAMES, Variant

T = TypeVar("T")


class RunSpec(Part):
    """One run: what determines its result, and where and how it is computed.

    `rst.experiments.runs.identity` tells the two apart.

    Raises:
        InputError: two keys contradict each other; the sentence names both and the fix.
        pydantic.ValidationError: a key has a value of another type or outside its range.
    """

    network: Text
    model: Model
    dataset: Dataset
    augmentation: Augmentation
    optimizer: Optimizer
    recipe: Recipe
    schedule: ScheduleOptions
    scheme: Scheme
    variant: VariantOptions

    scale: Text
    max_seeds: OptionalCount
    datasets: Annotated[tuple[Text, ...] | None, wanted("null or a list of names")]

    seed: Integer
    autocast: Literal[None, "bfloat16", "float16"]
    tf32: Flag
    device: Device
    devices: Count
    channels_last: Flag
    compile: Flag
    cuda_graphs: Flag = True
    deterministic: Flag

    force: Flag = False
    """Whether a run that is done, diverged or half done is trained anew; its record is kept under another name."""
    keep_network: Flag = True
    """Whether the network of a run that is done stays on the disk, to be scored; while it trains, all of it does."""
    evaluate: OptionalText
    evaluate_every: Count
    measure_sharpness: Flag = False
    """Whether the summary also has how sharp the minimum is: see `rst.experiments.training.flatness`."""
    paths: Paths
    wandb: Wandb
    slurm: Slurm

    def changed(self, **changes: Any) -> "RunSpec":
        """A copy with other values, checked anew: ``changed(seed=1, wandb={"group": "table03"})``."""
        return RunSpec.model_validate(_merged(self.dump(), changes))

    def dump(self) -> dict[str, Any]:
        """The spec as plain data, from which `model_validate` makes an equal one."""
        return self.model_dump(mode="json", exclude_unset=True)

    def flat(self) -> dict[str, Any]:
        """The values of all keys by their dotted names, as in "recipe.epochs"."""
        return dict(_leaves(self.dump()))

    # ---------------------------------------------------------------------------------------- what follows from it

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in the training images that are not held out."""
        return steps_per_epoch(self.dataset.train_images, self.dataset.validation, self.recipe.batch_size)

    @property
    def total_steps(self) -> int:
        """T, the number of optimizer steps."""
        return self.recipe.epochs * self.steps_per_epoch

    @property
    def perturbation_batch(self) -> int:
        """How many images share a perturbation."""
        return self.recipe.perturbation_batch or self.recipe.batch_size

    @property
    def p(self) -> Schedule | AESAM:
        """The schedule: p at every step, the probability that the step is sharp, or the rule of AE-SAM."""
        name = self.schedule.name
        if name not in rst.schedules.__all__ or not name.islower():
            raise InputError(f"schedule.name={name} does not exist: write schedule=<a file of configs/schedule>.")
        factory: Callable[..., Schedule | AESAM] = getattr(rst.schedules, name)
        return _built("schedule", factory, self.schedule.options)

    @property
    def mean_p(self) -> float | None:
        """The mean of p(t) over the steps of the run; None where each step's clean pass decides whether it is sharp."""
        p = self.p
        return p.mean(self.total_steps) if isinstance(p, Schedule) else None

    @property
    def gamma_ratio(self) -> float:
        """c = γ/ρ, with "auto" resolved to 1 / mean of p(t)."""
        ratio = self.scheme.gamma_ratio
        if ratio != "auto":
            return ratio
        assert self.mean_p  # `_method_fits_run` refuses another.
        return 1 / self.mean_p

    @property
    def expected_passes(self) -> float:
        """T (1 + Δη): the expected work of the run, in forward-backward passes over a batch.

        Where the clean pass decides, half of the steps are taken to be sharp: AE-SAM's authors report about as many.
        """
        share = 0.5 if self.mean_p is None else self.mean_p
        return self.total_steps * (1 + share * self.build_variant().extra_passes)

    @property
    def depends_on_devices(self) -> bool:
        """Whether a run on n devices is another run than that with n micro-batches on one device."""
        decided_by_first_micro_batch = self.mean_p is None and self.recipe.batch_size > self.perturbation_batch
        return self.build_variant().depends_on_devices or decided_by_first_micro_batch

    @property
    def stands_in(self) -> bool:
        """Whether the embedded digits take the place of the data set's own images."""
        return self.dataset.source == "digits" != self.dataset.name

    def build_variant(self) -> Variant:
        """A new instance of the variant, with its options."""
        name = self.variant.name
        if name not in NAMES:
            raise InputError(f"variant.name={name} does not exist: write one of {', '.join(NAMES)}.")
        return _built("variant", NAMES[name], self.variant.options)

    # ------------------------------------------------------------------------------------------------ contradictions

    @model_validator(mode="after")
    def _scheme_and_schedule_agree(self) -> "RunSpec":
        scheme, p = self.scheme, self.p
        needed = {"sgd": 0.0, "sam": 1.0, "gnr": 1.0}.get(scheme.name)
        if needed is not None and not (isinstance(p, Schedule) and p.time_invariant and p.mean() == needed):
            raise InputError(
                f"scheme={scheme.name} means p = {needed:g} at every step, but the schedule is {p}: "
                "leave the schedule out, or take scheme=rst or scheme=grst."
            )
        if scheme.name in ("sam", "rst") and scheme.gamma_ratio != 1:
            raise InputError(
                f"scheme={scheme.name} means scheme.gamma_ratio=1, not {scheme.gamma_ratio}: "
                f"take scheme={'gnr' if scheme.name == 'sam' else 'grst'}."
            )
        if scheme.name == "gnr" and scheme.gamma_ratio == "auto":
            raise InputError("scheme.gamma_ratio=auto would make GNR into SAM: give a number.")
        return self

    @model_validator(mode="after")
    def _data_fit_scale_and_network(self) -> "RunSpec":
        data = self.dataset
        if self.datasets is not None and data.name not in self.datasets:
            raise NotAtThisScale(
                f"scale={self.scale} has no {data.name}, only {', '.join(self.datasets)}: "
                "take one of them or another scale."
            )
        if not len(data.mean) == len(data.std) == data.channels:
            raise InputError(
                f"dataset.channels={data.channels}, but dataset.mean and dataset.std have {len(data.mean)} and "
                f"{len(data.std)} numbers: give one for each channel."
            )
        if data.name == "folder" and data.source != "auto":
            raise InputError(
                f"dataset.source={data.source} has no effect on dataset=folder, whose images are files: leave it out."
            )
        if data.name in ("folder", "imagenet") and data.source != "digits" and data.channels != 3:
            raise InputError(
                f"dataset.channels={data.channels}, but images in files are read in colour: leave dataset.channels out."
            )
        options = self.model.options
        for key, of_data in (("num_classes", "num_classes"), ("in_channels", "channels"), ("image_size", "image_size")):
            if options.get(key, getattr(data, of_data)) != getattr(data, of_data):
                raise InputError(
                    f"model.{key}={options[key]} is not dataset.{of_data}={getattr(data, of_data)}: "
                    f"leave model.{key} out."
                )
        if self.model.pretrained_digest is not None and not isinstance(self.model.pretrained, str):
            raise InputError(
                f"model.pretrained_digest={self.model.pretrained_digest} has no effect without a file: write "
                "model.pretrained=<the file that has it>, or leave the digest out."
            )
        if len(self.model.blocks) != len(self.model.widths):
            raise InputError(
                f"model.blocks={list(self.model.blocks)} and model.widths={list(self.model.widths)} differ in length: "
                "give one width for each stage."
            )
        return self

    @model_validator(mode="after")
    def _batches_fit_images_and_devices(self) -> "RunSpec":
        data, recipe = self.dataset, self.recipe
        kept = data.train_images - data.validation
        if kept < 1:
            raise InputError(
                f"dataset.validation={data.validation} leaves none of dataset.train_images={data.train_images} to "
                "train on: hold out fewer."
            )
        if recipe.batch_size > kept:
            raise InputError(
                f"recipe.batch_size={recipe.batch_size} is larger than the {kept} training images "
                "(dataset.train_images - dataset.validation): take a smaller batch or more images."
            )
        if recipe.batch_size % self.perturbation_batch:
            raise InputError(
                f"recipe.perturbation_batch={recipe.perturbation_batch} does not divide "
                f"recipe.batch_size={recipe.batch_size}: take a divisor, or null for the whole batch."
            )
        perturbations = recipe.batch_size // self.perturbation_batch
        if perturbations % self.devices:
            fitting = [str(n) for n in range(1, perturbations + 1) if perturbations % n == 0]
            raise InputError(
                f"devices={self.devices} do not divide the {perturbations} perturbations of a step, recipe.batch_size="
                f"{recipe.batch_size} / recipe.perturbation_batch={self.perturbation_batch}: take devices="
                f"{' or '.join(fitting)}, or a smaller recipe.perturbation_batch."
            )
        if recipe.warmup_epochs > recipe.epochs:
            raise InputError(
                f"recipe.warmup_epochs={recipe.warmup_epochs:g} is longer than the run of "
                f"recipe.epochs={recipe.epochs}: shorten the warm-up."
            )
        return self

    @model_validator(mode="after")
    def _method_fits_run(self) -> "RunSpec":
        if self.scheme.name == "grst" and self.mean_p == 0:
            raise InputError(
                f"scheme=grst on schedule {self.p} never takes a sharp step in {self.total_steps} steps: "
                "take another schedule, or scheme=sgd."
            )
        if self.scheme.gamma_ratio == "auto" and self.mean_p is None:
            raise InputError(
                f"scheme.gamma_ratio=auto is 1 / mean of p(t), which schedule {self.p} does not know before the "
                "training: write scheme.gamma_ratio=<a number>, or take scheme=rst, where it is 1."
            )
        self.build_variant()
        return self


def steps_per_epoch(train_images: int, validation: int, batch_size: int) -> int:
    """Whole batches in the training images that are not held out; the last partial batch is dropped."""
    return (train_images - validation) // batch_size


def _built(group: str, factory: Callable[..., T], options: Mapping[str, Any]) -> T:
    refuse_unknown_options(group, factory, options)
    with bad_input(f"{group}: "):
        return factory(**options)


def refuse_unknown_options(group: str, factory: Callable[..., Any], options: Iterable[str]) -> None:
    """Raise `InputError` where a group has a key that is no argument of what its other keys build."""
    known = inspect.signature(factory).parameters
    if any(argument.kind is argument.VAR_KEYWORD for argument in known.values()):
        return  # It hands them on.
    for key in options:
        if key not in known:
            raise InputError(f"{group}.{key} is not an option of {factory.__name__}: leave it out.")


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    nested = {
        key: _merged(values[key], change)
        if isinstance(change, Mapping) and isinstance(values.get(key), Mapping)
        else change
        for key, change in changes.items()
    }
    return {**values, **nested}


def _leaves(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value
