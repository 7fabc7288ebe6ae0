"""The configs: what a command means, which key wins, and what is refused before any work."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

import rst
from rst.experiments.config import CONFIGS, InputError, gamma_ratio, load_config, schedule_of, total_steps
from rst.training import train

WIDE_RESNETS = ["wrn28_10", "wrn16_1", "wrn16_2", "wrn10_1", "wrn10_2"]
MODELS = ["resnet18", *WIDE_RESNETS, "pyramidnet164", "vgg16_bn", "vit_ti", "vit_s", "vit_b", "resnet50", "resnet101"]
DATASETS = ["cifar10", "cifar100", "imagenet", "digits"]
SCHEMES = ["sgd", "sam", "gnr", "rst", "grst"]
RELIED_ON = {
    *("dataset.root", "dataset.source", "model._target_", "schedule.p", "scheme.gamma_ratio", "variant.rho"),
    *("recipe.epochs", "recipe.batch_size", "seed", "device", "paths.runs", "wandb.mode", "scale"),
}


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def numbers(value: Any) -> list[float]:
    return value if isinstance(value, list) else [value]


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of a config by their dotted keys; a list is a leaf."""
    if not OmegaConf.is_dict(node):
        return {prefix: OmegaConf.to_container(node) if OmegaConf.is_config(node) else node}
    parts = [flat(node[key], f"{prefix}.{key}" if prefix else str(key)) for key in node]
    return {key: value for part in parts for key, value in part.items()}


# ------------------------------------------------------------------------------------------------- what a command means


def test_default_run_is_resnet18_on_cifar10_by_grst_at_one_half() -> None:
    cfg = load_config([])
    assert (cfg.network, cfg.dataset.name, cfg.scheme.name, cfg.scale) == ("resnet18", "cifar10", "grst", "paper")
    assert str(schedule_of(cfg)) == "constant(p=0.5)"
    assert gamma_ratio(cfg) == 2


@pytest.mark.parametrize(
    ("scheme", "p", "c"), [("sgd", 0, 1), ("sam", 1, 1), ("gnr", 1, 0.8), ("rst", 0.5, 1), ("grst", 0.5, 2)]
)
def test_scheme_alone_means_this_schedule_and_ratio(scheme: str, p: float, c: float) -> None:
    cfg = load_config([f"scheme={scheme}"])
    assert (schedule_of(cfg).mean(total_steps(cfg)), gamma_ratio(cfg)) == (p, c)


def test_every_scheme_has_a_config() -> None:
    assert choices("scheme") == sorted(SCHEMES)


def test_every_network_and_data_set_has_a_config() -> None:
    assert choices("model") == sorted(MODELS)
    assert choices("dataset") == sorted(DATASETS)


def test_every_schedule_has_a_config() -> None:
    assert choices("schedule") == sorted(set(rst.schedules.__all__) - {"Schedule"})


@pytest.mark.parametrize("name", choices("schedule"))
def test_schedule_config_builds_its_schedule_with_probabilities(name: str) -> None:
    schedule = schedule_of(load_config(["scheme=rst", f"schedule={name}"]))
    assert all(0 <= schedule(t, 100) <= 1 for t in range(100))


def test_auto_ratio_follows_the_schedule() -> None:
    cfg = load_config(["schedule=linear", "schedule.m=0.25"])
    assert gamma_ratio(cfg) == pytest.approx(1 / 0.25, rel=1e-3)


@pytest.mark.parametrize("dataset", DATASETS)
def test_keys_that_other_code_relies_on_exist(dataset: str) -> None:
    assert flat(load_config([f"dataset={dataset}"])).keys() >= RELIED_ON


def test_data_sets_have_the_same_keys_so_that_overrides_fit_all() -> None:
    keys = {dataset: set(load_config([f"dataset={dataset}"]).dataset) for dataset in DATASETS}
    assert keys == dict.fromkeys(DATASETS, keys["cifar10"])


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
    assert OmegaConf.select(load_config(overrides), key) == value


@pytest.mark.parametrize("model", ["resnet18", "pyramidnet164", "vit_s"])
def test_scheme_changes_nothing_but_schedule_and_ratio(model: str) -> None:
    configs = [flat(load_config([f"model={model}", f"scheme={scheme}"])) for scheme in SCHEMES]
    rests = [
        {key: value for key, value in cfg.items() if key.split(".")[0] not in ("schedule", "scheme")} for cfg in configs
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
    full, small = flat(load_config(overrides)), flat(load_config([*overrides, "scale=smoke"]))
    assert full.keys() == small.keys()
    shrinkable = {"dataset.train_images", "dataset.test_images", *(key for key in full if key.startswith("model."))}
    shrinkable |= {f"recipe.{key}" for key in ("epochs", "batch_size", "perturbation_batch", "warmup_epochs")}
    for key in full:
        if full[key] != small[key] and key not in ("scale", "wandb.mode", "dataset.source", "max_seeds"):
            assert key in shrinkable
            pairs = zip(numbers(full[key]), numbers(small[key]), strict=True)
            assert all(after <= before for before, after in pairs)
    assert (small["wandb.mode"], small["dataset.source"], small["max_seeds"]) == ("disabled", "digits", 1)


# ------------------------------------------------------------------------------------------------------ what is refused


def sentence(action: Callable[[], Any]) -> str:
    """What the action is refused with: one sentence on one line."""
    with pytest.raises(InputError) as refusal:
        action()
    message = str(refusal.value)
    assert "\n" not in message
    assert message.endswith((".", "?"))
    return message


# A command, and what the sentence must say: key, value and fix.
REFUSED_AT_ONCE = [
    # choices that are not there: all that are
    ("scheme=asam", "scheme=asam", "gnr, grst, rst, sam, sgd"),
    ("model=resnet19", "model=resnet19", "resnet18"),
    ("schedule=cosine", "schedule=cosine", "cosine_down, cosine_up"),
    ("dataset=mnist", "dataset=mnist", "cifar10, cifar100, digits, imagenet"),
    ("augmentation=mixcut", "augmentation=mixcut", "basic, cutout, mixup, none"),
    ("recipe=table16", "recipe=table16", "cifar"),
    ("scale=tiny", "scale=tiny", "paper, smoke"),
    ("scale=cpu dataset=imagenet model=resnet50", "scale=cpu", "imagenet", "only cifar10, cifar100"),
    # misspelt keys: what was meant
    ("recipe.epoch=3", "recipe.epoch", "did you mean recipe.epochs?"),
    ("recipe.btach_size=3", "recipe.btach_size", "did you mean recipe.batch_size?"),
    ("variant.roh=0.2", "variant.roh", "did you mean variant.rho?"),
    ("optimiser.lr=0.2", "optimiser.lr", "did you mean optimizer.lr?"),
    ("schedule.q=0.2", "schedule.q", "--cfg job"),
    # values out of range
    ("schedule.p=1.5", "schedule: p", "1.5", "[0, 1]"),
    ("schedule.p=-0.1", "schedule: p", "-0.1", "[0, 1]"),
    ("schedule=piecewise schedule.b=2", "schedule: b", "2", "[0, 1]"),
    ("schedule=periodic schedule.k=0", "schedule: k", "0", "an integer from 1"),
    ("variant.rho=-1", "variant.rho=-1", "a number from 0"),
    ("variant.rho=inf", "variant.rho=inf", "a number from 0"),
    ("scheme.gamma_ratio=-2", "scheme.gamma_ratio=-2", "auto or a number from 0"),
    ("recipe.epochs=0", "recipe.epochs=0", "an integer from 1"),
    ("recipe.batch_size=-4", "recipe.batch_size=-4", "an integer from 1"),
    ("recipe.clip_norm=-1", "recipe.clip_norm=-1", "null or a number from 0"),
    ("optimizer.lr=nan", "optimizer.lr=nan", "a number from 0"),
    ("dataset.label_noise=2", "dataset.label_noise=2", "from 0 to 1"),
    ("dataset.image_size=0", "dataset.image_size=0", "an integer from 1"),
    ("dataset.num_classes=0", "dataset.num_classes=0", "an integer from"),
    ("dataset.source=web", "dataset.source=web", "auto, parquet, torchvision, digits"),
    ("evaluate_every=0", "evaluate_every=0", "an integer from 1"),
    ("seed=-1", "seed=-1", "an integer from 0"),
    ("autocast=float8", "autocast=float8", "null, bfloat16, float16"),
    ("max_seeds=0", "max_seeds=0", "an integer from 1"),
    ("wandb.mode=on", "wandb.mode=on", "online, offline, disabled"),
    ("device=tpu", "device=tpu", "device=cpu"),
    ("device=cuda:99", "device=cuda:99", "device=cpu"),
    # values of another type
    ("schedule.p=half", "schedule: p", "half", "[0, 1]"),
    ("schedule.p=[0.1,0.2]", "schedule: p", "[0.1, 0.2]", "[0, 1]"),
    ("recipe.epochs=two", "recipe.epochs=two", "an integer from 1"),
    ("recipe.epochs=2.5", "recipe.epochs=2.5", "an integer from 1"),
    ("recipe.epochs=[1,2]", "recipe.epochs=[1, 2]", "an integer from 1"),
    ("recipe.batch_size=true", "recipe.batch_size=True", "an integer from 1"),
    ("optimizer.lr=fast", "optimizer.lr=fast", "a number from 0"),
    ("model=wrn28_10 model.depth=deep", "model.depth=deep", "an integer"),
    ("model=vit_s model.dropout=[0.1]", "model.dropout=[0.1]", "a number"),
    ("optimizer.momentum=high", "optimizer.momentum=high", "a number"),
    ("scheme.gamma_ratio=big", "scheme.gamma_ratio=big", "auto or a number from 0"),
    ("dataset.num_classes=ten", "dataset.num_classes=ten", "an integer from"),
    ("channels_last=maybe", "channels_last=maybe", "true or false"),
    ("paths.runs=null", "paths.runs=", "a text"),
    # keys at odds with each other
    ("scheme=sam schedule=constant", "scheme=sam", "constant(p=0.5)", "leave the schedule out"),
    ("scheme=sgd schedule.p=0.5 schedule=constant", "scheme=sgd", "constant(p=0.5)", "leave the schedule out"),
    ("scheme=sam scheme.gamma_ratio=2", "scheme.gamma_ratio=1, not 2", "scheme=gnr"),
    ("scheme=rst scheme.gamma_ratio=2", "scheme.gamma_ratio=1, not 2", "scheme=grst"),
    ("scheme=gnr scheme.gamma_ratio=auto", "scheme.gamma_ratio=auto", "give a number"),
    ("scheme=grst schedule=never", "scheme=grst", "never takes a sharp step", "scheme=sgd"),
    ("scheme=grst schedule.p=0", "scheme=grst", "never takes a sharp step", "scheme=sgd"),
    ("scheme=grst schedule=tail schedule.fraction=0", "scheme=grst", "never takes a sharp step", "scheme=sgd"),
    ("recipe.batch_size=60000", "recipe.batch_size=60000", "50000", "a smaller batch"),
    ("dataset.validation=49900", "recipe.batch_size=256", "100 training images", "a smaller batch"),
    ("recipe.perturbation_batch=60", "recipe.perturbation_batch=60", "recipe.batch_size=256", "a divisor"),
    ("recipe.perturbation_batch=512", "recipe.perturbation_batch=512", "recipe.batch_size=256", "a divisor"),
    ("recipe.warmup_epochs=201", "recipe.warmup_epochs=201", "recipe.epochs=200", "shorten the warm-up"),
    ("model=vit_s recipe.epochs=30", "recipe.warmup_epochs=40", "recipe.epochs=30", "shorten the warm-up"),
    ("dataset.channels=2", "dataset.channels=2", "dataset.mean"),
]


@pytest.mark.parametrize(("command", "words"), [(command, words) for command, *words in REFUSED_AT_ONCE])
def test_bad_config_is_refused_in_one_sentence_with_key_value_and_fix(command: str, words: list[str]) -> None:
    message = sentence(lambda: load_config(command.split()))
    assert [word for word in words if word not in message] == []


# As above, of what shows only when data, network and optimizer are built. {tmp} is an empty folder.
REFUSED_AT_THE_START = [
    ("dataset.train_images=5000", "dataset.train_images=5000", "1000", "at most"),
    ("dataset.test_images=5000", "dataset.test_images=5000", "797", "at most"),
    ("dataset.num_classes=5", "dataset.num_classes=5", "label"),
    ("dataset=cifar10 dataset.root={tmp}/nowhere", "dataset.root={tmp}/nowhere", "write the folder"),
    ("dataset=cifar10 dataset.root={tmp} dataset.source=parquet", "{tmp}/cifar10/*", "write dataset.root=<folder"),
    ("augmentation.cutout=40", "augmentation.cutout=40", "0 (off) to 8"),
    ("augmentation.crop_padding=8", "augmentation.crop_padding=8", "0 to 7"),
    ("model=vgg16_bn", "dataset.image_size", "at least 32", "8", "model=resnet18"),
    ("model=resnet50", "dataset.image_size", "at least 64", "8", "model=resnet18"),
    ("model=vit_ti dataset.image_size=30", "model.patch_size=4", "dataset.image_size=30", "divides"),
    ("model.depth=17", "model.depth", "17", "16, 22"),
    ("model=pyramidnet164 model.depth=100", "model.depth", "100", "9n + 2"),
    ("optimizer.momentum=0", "optimizer", "Nesterov momentum"),
    ("paths.runs={tmp}/file/runs", "paths.runs={tmp}/file/runs", "cannot be written", "write paths.runs=<folder>"),
]


@pytest.mark.parametrize(("command", "words"), [(command, words) for command, *words in REFUSED_AT_THE_START])
def test_bad_data_network_or_folder_is_refused_in_one_sentence_before_a_record_is_made(
    command: str, words: list[str], config: Callable[..., DictConfig], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    cfg = config(*command.format(tmp=tmp_path).split())
    message = sentence(lambda: train(cfg, show_progress=False))
    assert [word for word in words if word.format(tmp=tmp_path) not in message] == []
    assert not Path(cfg.paths.runs).exists()


def test_damaged_parquet_file_is_refused_by_name(config: Callable[..., DictConfig], tmp_path: Path) -> None:
    folder = tmp_path / "data" / "cifar10" / "plain_text"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        (folder / f"{split}-00000-of-00001.parquet").write_bytes(b"PAR1 and then nonsense")
    cfg = config("dataset=cifar10", f"dataset.root={tmp_path / 'data'}")
    message = sentence(lambda: train(cfg, show_progress=False))
    assert str(folder / "train-00000-of-00001.parquet") in message
    assert "copy or download it again" in message
    assert not Path(cfg.paths.runs).exists()
