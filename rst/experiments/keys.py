"""The groups of keys that a run has, each key with the values that it may have."""

import os
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeGuard

import torch
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

# ------------------------------------------------------------------------------------------------ the values of keys


def wanted(phrase: str) -> WrapValidator:
    """Answer a value that does not fit by what to write instead."""

    def check(value: Any, handler: Any) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise PydanticCustomError("wanted", "write {phrase}", {"phrase": phrase}) from None

    return WrapValidator(check)


def _device(name: str) -> str:
    try:
        if name != "auto":
            torch.device(name)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    return name


_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]

Integer = Annotated[int, Field(strict=True, ge=0), wanted("an integer from 0")]
Count = Annotated[int, Field(strict=True, ge=1), wanted("an integer from 1")]
Classes = Annotated[int, Field(strict=True, ge=2), wanted("an integer from 2")]
Number = Annotated[_Number, Field(ge=0), wanted("a number from 0")]
Share = Annotated[_Number, Field(ge=0, le=1), wanted("a number from 0 to 1")]
Flag = Annotated[bool, Field(strict=True), wanted("true or false")]
Text = Annotated[str, Field(strict=True, min_length=1), wanted("a text")]
Device = Annotated[Text, AfterValidator(_device), wanted("auto, cpu, cuda, cuda:1, mps or another device of torch")]
Folder = Annotated[
    str, Field(strict=True, min_length=1), AfterValidator(os.path.expanduser), wanted("a text")
]  # ~ is the home folder.
Counts = Annotated[tuple[Count, ...], Field(min_length=1), wanted("a list of integers from 1")]
Means = Annotated[tuple[_Number, ...], Field(min_length=1), wanted("a list of numbers, one for each channel")]
Deviations = Annotated[
    tuple[Annotated[_Number, Field(gt=0)], ...],
    Field(min_length=1),
    wanted("a list of numbers above 0, one for each channel"),
]
OptionalCount = Annotated[Count | None, wanted("null or an integer from 1")]
OptionalNumber = Annotated[Number | None, wanted("null or a number from 0")]
OptionalText = Annotated[Text | None, wanted("null or a text")]
Weights = Annotated[Literal[True] | Folder | None, wanted("null, the path of a file, or true")]
_Scalar = StrictBool | StrictInt | StrictFloat | StrictStr | None
Option = Annotated[_Scalar | tuple[_Scalar, ...], wanted("a number, a text, true, false or a list of these")]
"""The value of an option of a network, an optimizer, a schedule or a variant: plain data, which can name no code."""

# --------------------------------------------------------------------------------------------------------- the parts


class Part(BaseModel):
    """A group of keys; a key that it does not declare is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def is_part(annotation: Any) -> TypeGuard[type[Part]]:
    """Whether the type of a key says that it is a group of keys."""
    return isinstance(annotation, type) and issubclass(annotation, Part)


def keys_of(part: type[Part], prefix: str = "") -> Iterator[str]:
    """The dotted names of all keys that a group declares, also in its groups."""
    for name, field in part.model_fields.items():
        if is_part(field.annotation):
            yield from keys_of(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


class Named(Part):
    """A group whose further keys are options of what it names."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Option]

    @property
    def options(self) -> dict[str, Any]:
        """All keys of the group that have a value in the config, but for ``name`` and ``rho``."""
        return self.model_dump(exclude_unset=True, exclude={"name", "rho"})


class Dataset(Part):
    """What an example is, and where the images come from."""

    name: Literal["cifar10", "cifar100", "imagenet", "digits", "folder"]
    source: Literal["auto", "parquet", "torchvision", "digits"]
    root: Folder
    digest: OptionalText = None
    """The digest of the images where their folder is the user's own, so that the name does not say which they are."""
    num_classes: Classes
    channels: Count
    image_size: Count
    mean: Means
    std: Deviations
    train_images: Count
    test_images: Count
    validation: Integer
    label_noise: Share


class Augmentation(Part):
    """What is done to a training image on its way to the network."""

    flip: Flag
    crop_padding: Integer
    cutout: Integer
    cutout_per_image: Flag
    mixup_alpha: Number


class Model(Named):
    """The options of the network; the typed ones are those of the networks in ``configs/model``."""

    name: Text = ""
    """Which network of a library, where the group names a library: timm or torchvision."""
    pretrained: Weights = None
    """The weights to begin with: those in a file, or, if true, those that the library downloads; null: random ones."""
    pretrained_digest: OptionalText = None
    """The digest of that file."""
    depth: Count = 1
    width: Count = 1
    widen_factor: Count = 1
    heads: Count = 1
    hidden: Count = 1
    patch_size: Count = 1
    blocks: Counts = ()
    widths: Counts = ()
    alpha: Number = 0.0
    dropout: Share = 0.0

    @property
    def options(self) -> dict[str, Any]:
        """All keys that have a value in the config, but for those of the weights to begin with."""
        return self.model_dump(exclude_unset=True, exclude={"pretrained", "pretrained_digest"})


class Optimizer(Named):
    """The base optimizer and its options."""

    name: Text
    lr: Number
    momentum: Share = 0.0
    nesterov: Flag = False
    weight_decay: Number = 0.0


class Recipe(Part):
    """A column of the paper's Tables 16 to 18."""

    epochs: Count
    batch_size: Count
    perturbation_batch: OptionalCount
    clip_norm: OptionalNumber
    rho: Number
    warmup_epochs: Number
    l2: Number


class ScheduleOptions(Named):
    """p(t): a factory of `rst.schedules` and its parameters."""

    name: Text


class Scheme(Part):
    """SGD, SAM, GNR, RST or G-RST (Table 5 of the paper): the ratio c = γ/ρ, and how the two gradients are mixed."""

    name: Literal["sgd", "sam", "gnr", "rst", "grst"]
    gamma_ratio: Annotated[Literal["auto"] | Number, wanted("auto or a number from 0")]
    normalise_clean: Flag


class VariantOptions(Named):
    """How a sharp step finds its gradient: a variant of `rst.variants`, the radius ρ, and the variant's options."""

    name: Text
    rho: Number


class Paths(Part):
    """Where images are looked for, where decoded images are kept, and where records are written."""

    data: Folder
    cache: Folder
    runs: Folder


class Wandb(Part):
    """How a run is mirrored to Weights & Biases."""

    mode: Literal["online", "offline", "disabled"]
    project: Text
    group: OptionalText
    job_type: OptionalText


class Slurm(Named):
    """The parameters of a Slurm job, as `submitit.SlurmExecutor` takes them."""
