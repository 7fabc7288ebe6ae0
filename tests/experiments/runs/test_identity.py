"""The id of a run: equal for runs that do the same, however they are written, and for no others."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from rst.experiments import build
from rst.experiments import compose as compose_room
from rst.experiments.compose import CONFIGS, compose
from rst.experiments.runs.identity import ADDED_LATER, identity, run_id
from rst.experiments.spec import RunSpec

GRST = compose(["dataset=cifar10", "model=wrn10_1", "scheme=grst", "schedule.p=0.25"])


def nested(key: str, value: Any) -> dict[str, Any]:
    """A value under a dotted key."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def changed(spec: RunSpec, key: str, value: Any) -> RunSpec:
    return spec.changed(**nested(key, value))


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, value


# ---------------------------------------------------------------------------------------------------- what is in the id

ANOTHER = {
    "dataset.name": "cifar100",
    "dataset.source": "parquet",
    "scheme.gamma_ratio": 3.0,
    "variant.name": "asam",
    "device": "cpu",
    "autocast": "bfloat16",
    "max_seeds": 2,
    "datasets": ["cifar10"],
    "wandb.mode": "offline",
}


def other(key: str, value: Any) -> Any:
    """A value unlike this one that the key may have."""
    if key in ANOTHER:
        return ANOTHER[key]
    match value:
        case bool():
            return not value
        case int():
            return 2 * value or 1
        case float():
            return value / 2 or 0.5
        case [first, *rest]:
            return [first / 2, *rest]
    return "x" if value is None else f"{value}x"


FIXED_BY_OTHERS = {
    *("model.num_classes", "model.in_channels", "model.pretrained_digest", "dataset.channels"),
    *("schedule.name", "schedule.p", "scheme.name", "scheme.normalise_clean"),
}
"""Keys that cannot change alone, and keys of schedule and scheme, which have tests of their own."""

NOT_IN_THE_ID = {
    *("device", "devices", "channels_last", "compile", "cuda_graphs", "deterministic"),
    *(
        "scale",
        "max_seeds",
        "datasets",
        "force",
        "keep_network",
        "evaluate",
        "evaluate_every",
        "measure_sharpness",
        "dataset.root",
        "dataset.source",
        "paths.data",
        "paths.cache",
        "paths.runs",
    ),
    *("wandb.mode", "wandb.project", "wandb.group", "wandb.job_type"),
    *(f"slurm.{key}" for key in OmegaConf.load(CONFIGS / "train.yaml").slurm),
    "model.pretrained",  # a path, of whose file the digest counts
    "recipe.rho",  # which counts as variant.rho
    "augmentation.cutout_per_image",  # without effect while cutout is 0
}


def test_id_depends_on_every_key_but_those_that_do_not_change_the_result() -> None:
    keys = {key: value for key, value in leaves(GRST.dump()) if key not in FIXED_BY_OTHERS | {"dataset.num_classes"}}
    same = {key for key, value in keys.items() if run_id(changed(GRST, key, other(key, value))) == run_id(GRST)}
    assert same == NOT_IN_THE_ID


def test_id_depends_on_the_number_of_classes_and_of_channels() -> None:
    classes = GRST.changed(dataset={"num_classes": 20}, model={"num_classes": 20})
    grey = GRST.changed(dataset={"channels": 1, "mean": [0.5], "std": [0.2]}, model={"in_channels": 1})
    assert len({run_id(GRST), run_id(classes), run_id(grey)}) == 3


def test_id_depends_on_p_of_every_step() -> None:
    ids = {
        run_id(compose(["scheme=rst", *schedule]))
        for schedule in (
            ["schedule.p=0.25"],
            ["schedule.p=0.5"],
            ["schedule=linear"],  # the same mean
            ["schedule=linear", "schedule.m=0.25"],
            ["schedule=cosine_up"],
        )
    }
    assert len(ids) == 5


@pytest.mark.parametrize(
    "more",
    ["tf32=true", "autocast=bfloat16", "autocast=float16", "dataset.digest=0123456789", "+model.dropout=0.5"],
)
def test_id_depends_on_precision_images_and_options(more: str) -> None:
    assert run_id(compose(["model=wrn10_1", more])) != run_id(compose(["model=wrn10_1"]))


def test_id_depends_on_whether_the_norm_of_the_clean_gradient_is_divided_by_where_that_has_an_effect() -> None:
    alone = ["recipe.perturbation_batch=null", "scheme.gamma_ratio=2"]
    assert run_id(compose([*alone, "scheme.normalise_clean=true"])) != run_id(compose(alone))


@pytest.mark.parametrize("variant", ["ssam_f", "ssam_d"])
def test_id_depends_on_the_devices_where_their_masks_do(variant: str) -> None:
    """Each rank scores its own images, and masks are of the mean of the scores."""
    ids = {run_id(compose([f"variant={variant}", "scheme=sam", f"devices={devices}"])) for devices in (1, 2, 4)}
    assert len(ids) == 3


@pytest.mark.parametrize("command", ["scheme=sam", "scheme=sam variant=looksam", "scheme=sgd variant=ssam_f"])
def test_id_does_not_depend_on_the_devices_otherwise(command: str) -> None:
    assert len({run_id(compose([*command.split(), f"devices={devices}"])) for devices in (1, 2, 4)}) == 1


# ---------------------------------------------------------------------------------------- one id for what does the same


@pytest.mark.parametrize(
    "twins",
    [
        (["scheme=sam"], ["scheme=rst", "schedule.p=1"], ["scheme=grst", "schedule.p=1.0", "scheme.gamma_ratio=1"]),
        (["scheme=sam"], ["scheme=grst", "schedule=always"], ["scheme=gnr", "scheme.gamma_ratio=1.0"]),
        (["scheme=rst"], ["scheme=grst", "scheme.gamma_ratio=1"]),
        (
            ["scheme=rst"],
            ["scheme=rst", "schedule=piecewise", "schedule.a=0.5"],
            ["scheme=rst", "schedule=linear_through", "schedule.b=0.5"],
        ),
        (
            ["scheme=rst", "schedule=tail", "schedule.fraction=0.3"],
            ["scheme=rst", "schedule=piecewise", "schedule.a=0", "schedule.b=0.7"],
        ),
        (["scheme=grst"], ["scheme=grst", "scheme.gamma_ratio=2"], ["scheme=grst", "scheme.gamma_ratio=2.0"]),
        (["scheme=grst", "schedule.p=0.3"], ["scheme=grst", "schedule.p=0.3", "scheme.gamma_ratio=3.33333333333"]),
        (["scheme=sam"], ["scheme=sam", "scheme.normalise_clean=true"]),  # (1 - c) g is zero
        (["scheme=sgd"], ["scheme=rst", "schedule.p=0"], ["scheme=rst", "schedule=never"]),
        (["scheme=sgd"], ["scheme=sgd", "recipe.rho=0.5"], ["scheme=sgd", "variant.rho=7"]),
        (["scheme=sgd"], ["scheme=sgd", "scheme.gamma_ratio=0.3"], ["scheme=sgd", "scheme.normalise_clean=true"]),
        (["scheme=sgd"], ["scheme=rst", "schedule=tail", "schedule.fraction=0"]),
        (["scheme=sam"], ["scheme=rst", "schedule=tail", "schedule.fraction=1"]),
        (["scheme=sam", "variant.rho=0.3"], ["scheme=sam", "recipe.rho=0.3"]),
        (["recipe.warmup_epochs=2"], ["recipe.warmup_epochs=2.0"]),
        ([], ["device=cpu", "compile=true", "channels_last=true", "dataset.root=elsewhere", "dataset.source=parquet"]),
        # Kernels of the optimizer change its speed.
        ([], ["+optimizer.fused=true"], ["+optimizer.foreach=false"]),
        (["optimizer=adamw"], ["optimizer=adamw", "+optimizer.capturable=true"]),
        # The whole batch shares a perturbation.
        (["recipe.perturbation_batch=256"], ["recipe.perturbation_batch=null"]),
        # Without a hole there is no place for it.
        (["augmentation.cutout_per_image=true"], ["augmentation.cutout_per_image=false"]),
        # Crops of ImageNet are resized, not padded.
        (
            ["dataset=imagenet", "model=resnet50"],
            ["dataset=imagenet", "model=resnet50", "augmentation.crop_padding=0"],
        ),
    ],
    ids=lambda twins: " = ".join(" ".join(command) or "default" for command in twins),
)
def test_equal_runs_have_one_id_however_they_are_written(twins: tuple[list[str], ...]) -> None:
    assert len({run_id(compose(overrides)) for overrides in twins}) == 1


@pytest.mark.parametrize(
    "twins",
    [
        # As above, where the key has an effect.
        (["augmentation=cutout"], ["augmentation=cutout", "augmentation.cutout_per_image=true"]),
        (
            ["dataset=imagenet", "model=resnet50", "dataset.source=digits"],
            ["dataset=imagenet", "model=resnet50", "dataset.source=digits", "augmentation.crop_padding=0"],
        ),
        ([], ["augmentation.crop_padding=0"]),
        (["recipe.perturbation_batch=128"], ["recipe.perturbation_batch=null"]),
        (["optimizer.nesterov=false"], ["optimizer.nesterov=true"]),
    ],
    ids=lambda twins: " / ".join(" ".join(command) or "default" for command in twins),
)
def test_runs_that_differ_have_ids_that_differ(twins: tuple[list[str], ...]) -> None:
    assert len({run_id(compose(overrides)) for overrides in twins}) == 2


@settings(max_examples=30)
@given(
    value=st.integers(0, 1000), key=st.sampled_from(["optimizer.lr", "recipe.l2", "variant.rho", "scheme.gamma_ratio"])
)
def test_an_integer_and_the_same_number_with_a_point_are_one_value(value: int, key: str) -> None:
    assert run_id(changed(GRST, key, value)) == run_id(changed(GRST, key, float(value)))


@settings(max_examples=30)
@given(a=st.floats(0, 10), b=st.floats(0, 10))
def test_numbers_that_differ_have_ids_that_differ(a: float, b: float) -> None:
    ids = [run_id(changed(GRST, "variant.rho", value)) for value in (a, b)]
    assert (ids[0] == ids[1]) == (a == b)


# --------------------------------------------------------------------------------------------------------- import paths


def test_import_path_of_a_network_or_an_optimizer_is_not_in_the_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that code can move, and old records keep their ids."""
    before = run_id(compose(["scale=smoke"]))
    for room in (compose_room, build):
        monkeypatch.setattr(room, "builder_of", lambda group, name: f"elsewhere.{group}.{name}")
    moved = ["scale=smoke", "model._target_=elsewhere.model.resnet18", "optimizer._target_=elsewhere.optimizer.sgd"]
    assert run_id(compose(moved)) == before


def test_what_determines_a_run_names_no_code() -> None:
    assert "_target_" not in str(identity(GRST))
    assert "torch." not in str(identity(GRST))


# -------------------------------------------------------------------------------------------------- what a person reads


def test_embedded_digits_are_never_taken_for_the_data_set_whose_shape_they_have() -> None:
    real = {run_id(changed(GRST, "dataset.source", source)) for source in ("auto", "parquet", "torchvision")}
    assert len(real) == 1
    digits = run_id(changed(GRST, "dataset.source", "digits"))
    assert digits not in real
    assert digits.startswith("digits_as_cifar10-")


def test_id_begins_with_what_a_person_looks_for() -> None:
    assert run_id(GRST).startswith("cifar10-wrn10_1-n50000-e200-constant-p0.25-c4-s0-")
    assert run_id(compose(["scheme=sgd", "seed=3"])).startswith("cifar10-resnet18-n50000-e200-constant-p0.0-s3-")
    assert "-asam-c1-" in run_id(compose(["scheme=sam", "variant=asam"]))


def test_id_says_how_many_images_are_left_for_training() -> None:
    assert "-n49000-" in run_id(changed(GRST, "dataset.validation", 1000))


# -------------------------------------------------------------------------------------------- keys that are added later


@pytest.mark.parametrize("scheme", ["sgd", "grst"])
@pytest.mark.parametrize("default", [0.5, None])
@pytest.mark.parametrize("key", ["optimizer.added", "model.added"])
def test_a_key_added_later_enters_the_id_only_where_it_differs_from_its_default(
    monkeypatch: pytest.MonkeyPatch, scheme: str, default: float | None, key: str
) -> None:
    spec = compose([f"scheme={scheme}", "model=wrn10_1"])
    old = run_id(spec)
    monkeypatch.setitem(ADDED_LATER, key, default)
    assert run_id(spec) == old
    assert run_id(changed(spec, key, default)) == old
    assert run_id(changed(spec, key, 0.75)) != old


def test_an_option_of_the_variant_that_was_added_later_keeps_the_ids_of_the_records_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At p = 0 too, where the variant is not in the id."""
    commands = [[f"scheme={scheme}", "variant=gsam"] for scheme in ("sgd", "grst")]
    old = [run_id(compose([*command, "~variant.alpha"])) for command in commands]
    monkeypatch.setitem(ADDED_LATER, "method.variant.alpha", 0.4)
    assert [run_id(compose([*command, "variant.alpha=0.4"])) for command in commands] == old
    assert run_id(compose([*commands[1], "variant.alpha=0.3"])) != old[1]
