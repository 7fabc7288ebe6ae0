"""What a command means, and which key wins."""

from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

import rst
from rst.experiments import compose as compose_room
from rst.experiments.compose import CONFIGS, builder_of, compose

WIDE_RESNETS = ["wrn28_10", "wrn16_1", "wrn16_2", "wrn10_1", "wrn10_2"]
MODELS = ["resnet18", *WIDE_RESNETS, "pyramidnet164", "vgg16_bn", "vit_ti", "vit_s", "vit_b", "resnet50", "resnet101"]
DATASETS = ["cifar10", "cifar100", "imagenet", "digits"]
SCHEMES = ["sgd", "sam", "gnr", "rst", "grst"]
RELIED_ON = {
    *("dataset.root", "dataset.source", "network", "schedule.name", "schedule.p", "scheme.gamma_ratio", "variant.rho"),
    *("recipe.epochs", "recipe.batch_size", "seed", "device", "devices", "paths.runs", "wandb.mode", "scale"),
}


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def numbers(value: Any) -> list[float]:
    return value if isinstance(value, list) else [value]


def keys_of(overrides: list[str]) -> dict[str, Any]:
    """The values of a command by their dotted keys."""
    return compose(overrides).flat()


# ------------------------------------------------------------------------------------------------- what a command means


def test_default_run_is_resnet18_on_cifar10_by_grst_at_one_half() -> None:
    spec = compose([])
    assert (spec.network, spec.dataset.name, spec.scheme.name, spec.scale) == ("resnet18", "cifar10", "grst", "paper")
    assert str(spec.p) == "constant(p=0.5)"
    assert spec.gamma_ratio == 2


@pytest.mark.parametrize(
    ("scheme", "p", "c"), [("sgd", 0, 1), ("sam", 1, 1), ("gnr", 1, 0.8), ("rst", 0.5, 1), ("grst", 0.5, 2)]
)
def test_scheme_alone_means_this_schedule_and_ratio(scheme: str, p: float, c: float) -> None:
    spec = compose([f"scheme={scheme}"])
    assert (spec.mean_p, spec.gamma_ratio) == (p, c)


def test_every_scheme_has_a_config() -> None:
    assert choices("scheme") == sorted(SCHEMES)


def test_every_network_and_data_set_has_a_config() -> None:
    assert choices("model") == sorted([*MODELS, "timm", "torchvision"])
    assert choices("dataset") == sorted([*DATASETS, "folder"])


def test_every_schedule_has_a_config() -> None:
    assert choices("schedule") == sorted(name for name in rst.schedules.__all__ if name.islower())


@pytest.mark.parametrize("group", ["model", "optimizer"])
def test_every_network_and_optimizer_says_what_builds_it(group: str) -> None:
    for name in choices(group):
        assert "." in builder_of(group, name)


@pytest.mark.parametrize("name", choices("schedule"))
def test_schedule_config_builds_its_schedule_with_probabilities(name: str) -> None:
    schedule = compose(["scheme=rst", f"schedule={name}"]).p
    if name == "ae_sam":
        assert schedule == rst.schedules.ae_sam()
    else:
        assert all(0 <= schedule(t, 100) <= 1 for t in range(100))


def test_auto_ratio_follows_the_schedule() -> None:
    assert compose(["schedule=linear", "schedule.m=0.25"]).gamma_ratio == pytest.approx(1 / 0.25, rel=1e-3)


@pytest.mark.parametrize("dataset", DATASETS)
def test_keys_that_other_code_relies_on_exist(dataset: str) -> None:
    assert keys_of([f"dataset={dataset}"]).keys() >= RELIED_ON


def test_data_sets_have_the_same_keys_so_that_overrides_fit_all() -> None:
    keys = {dataset: compose([f"dataset={dataset}"]).dataset.model_fields_set for dataset in DATASETS}
    assert keys == dict.fromkeys(DATASETS, keys["cifar10"])


def test_a_command_is_composed_also_within_a_main_function_of_hydra_which_is_left_as_it_was() -> None:
    """As where train.py looks up the speed of another run."""
    expected = compose(["model=wrn16_2"])
    compose_room._composed.cache_clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        outer = GlobalHydra.instance().hydra
        assert compose(["model=wrn16_2"]) == expected
        assert GlobalHydra.instance().hydra is outer


# ------------------------------------------------------------------------------------------------------- which key wins


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        # recipe over optimizer
        (["optimizer=adamw"], "optimizer.lr", 5e-4),
        (["recipe=imagenet", "optimizer=sgd"], "optimizer.lr", 0.2),
        (["optimizer=adamw", "recipe=single_gpu"], "optimizer.weight_decay", 5e-4),
        # scale over recipe
        (["scale=smoke", "recipe=imagenet"], "recipe.epochs", 2),
        (["scale=smoke", "recipe=imagenet"], "recipe.rho", 0.05),
        # the command line over all, wherever it stands
        (["recipe.epochs=7", "recipe=imagenet", "scale=smoke"], "recipe.epochs", 7),
        (["optimizer.lr=0.3", "recipe=imagenet"], "optimizer.lr", 0.3),
        (["model.widen_factor=4", "model=wrn28_10", "scale=smoke"], "model.widen_factor", 4),
        (["augmentation=basic", "model=vit_s"], "augmentation.mixup_alpha", 0),
        (["augmentation=cutout", "model=resnet18"], "augmentation.cutout", 16),
        # rho is the recipe's unless the variant has its own
        (["recipe.rho=0.3"], "variant.rho", 0.3),
        (["recipe.rho=0.3", "variant.rho=0.7"], "variant.rho", 0.7),
        # the scheme's ratio and schedule, unless given
        (["scheme=gnr", "scheme.gamma_ratio=0.5"], "scheme.gamma_ratio", 0.5),
        (["scheme=rst", "schedule=tail", "schedule.fraction=0.2"], "schedule.fraction", 0.2),
        (["dataset=digits"], "recipe.batch_size", 64),
    ],
    ids=str,
)
def test_later_group_wins_and_the_command_line_over_all(overrides: list[str], key: str, value: Any) -> None:
    assert keys_of(overrides)[key] == value


@pytest.mark.parametrize("model", ["resnet18", "pyramidnet164", "vit_s"])
def test_scheme_changes_nothing_but_schedule_and_ratio(model: str) -> None:
    specs = [keys_of([f"model={model}", f"scheme={scheme}"]) for scheme in SCHEMES]
    rests = [
        {key: value for key, value in spec.items() if key.split(".")[0] not in ("schedule", "scheme")} for spec in specs
    ]
    assert rests == [rests[0]] * len(SCHEMES)


@pytest.mark.parametrize(
    "overrides",
    [
        *([f"model={model}"] for model in MODELS if model not in ("resnet50", "resnet101")),
        ["dataset=imagenet", "model=resnet50"],
        ["dataset=imagenet", "model=resnet101"],
        ["dataset=digits", "model=wrn10_1"],
        ["recipe=single_gpu"],
        ["model=vit_s", "recipe=vit_300"],
    ],
    ids=" ".join,
)
def test_smoke_scale_only_shrinks_and_takes_the_embedded_images(overrides: list[str]) -> None:
    full, small = keys_of(overrides), keys_of([*overrides, "scale=smoke"])
    assert full.keys() == small.keys()
    shrinkable = {"dataset.train_images", "dataset.test_images", *(key for key in full if key.startswith("model."))}
    shrinkable |= {f"recipe.{key}" for key in ("epochs", "batch_size", "perturbation_batch", "warmup_epochs")}
    for key in full:
        if full[key] != small[key] and key not in (
            "scale",
            "wandb.mode",
            "dataset.source",
            "max_seeds",
            "keep_network",
        ):
            assert key in shrinkable
            pairs = zip(numbers(full[key]), numbers(small[key]), strict=True)
            assert all(after <= before for before, after in pairs)
    assert (small["wandb.mode"], small["dataset.source"], small["max_seeds"]) == ("disabled", "digits", 1)
    assert full["keep_network"]
    assert not small["keep_network"]
