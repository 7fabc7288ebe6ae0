"""Pairs of options, each right by itself: a pair is used whole, or refused in one sentence, and never passed over."""

import itertools
import random
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from image_tree import make_own_images

from rst.experiments.compose import compose
from rst.experiments.errors import InputError
from rst.experiments.spec import RunSpec
from rst.experiments.training import train

from .wrong_files import saved

pytestmark = pytest.mark.faults

CONTENT = saved({"weight": torch.zeros(3)})
DIGEST = sha256(CONTENT).hexdigest()

Effect = tuple[str, Any]
"""A dotted key of the spec, and the value that the option gives it."""

OPTIONS: dict[str, Effect] = {
    **{f"scheme={name}": ("scheme.name", name) for name in ("sgd", "sam", "gnr", "rst", "grst")},
    **{f"schedule={name}": ("schedule.name", name) for name in ("constant", "linear", "tail", "periodic", "sine")},
    **{
        f"variant={name}": ("variant.name", name)
        for name in ("asam", "friendly", "gsam", "looksam", "esam", "ssam_f", "ssam_d")
    },
    **{f"model={name}": ("network", name) for name in ("wrn10_1", "resnet18", "vgg16_bn", "vit_ti", "pyramidnet164")},
    **{f"dataset={name}": ("dataset.name", name) for name in ("cifar10", "cifar100", "digits")},
    **{f"optimizer={name}": ("optimizer.name", name) for name in ("sgd", "adamw")},
    "augmentation=cutout": ("augmentation.cutout", 16),
    "augmentation=mixup": ("augmentation.mixup_alpha", 1.0),
    "augmentation=none": ("augmentation.flip", False),
    "recipe.epochs=1": ("recipe.epochs", 1),
    "recipe.batch_size=16": ("recipe.batch_size", 16),
    "recipe.perturbation_batch=null": ("recipe.perturbation_batch", None),
    "recipe.perturbation_batch=8": ("recipe.perturbation_batch", 8),
    "recipe.clip_norm=null": ("recipe.clip_norm", None),
    "recipe.warmup_epochs=1": ("recipe.warmup_epochs", 1.0),
    "recipe.l2=0.01": ("recipe.l2", 0.01),
    "recipe.rho=0.3": ("recipe.rho", 0.3),
    "variant.rho=0.2": ("variant.rho", 0.2),
    "scheme.gamma_ratio=1.5": ("scheme.gamma_ratio", 1.5),
    "scheme.normalise_clean=true": ("scheme.normalise_clean", True),
    "dataset.train_images=64": ("dataset.train_images", 64),
    "dataset.validation=32": ("dataset.validation", 32),
    "dataset.label_noise=0.2": ("dataset.label_noise", 0.2),
    "dataset.source=digits": ("dataset.source", "digits"),
    "optimizer.lr=0.01": ("optimizer.lr", 0.01),
    "seed=3": ("seed", 3),
    "autocast=bfloat16": ("autocast", "bfloat16"),
    "channels_last=true": ("channels_last", True),
    "tf32=true": ("tf32", True),
    "deterministic=true": ("deterministic", True),
    "evaluate_every=2": ("evaluate_every", 2),
    "devices=2": ("devices", 2),
    "schedule=ae_sam scheme.gamma_ratio=1": ("schedule.name", "ae_sam"),
    "recipe=own": ("recipe.l2", 5e-4),
    "model=timm model.name=resnet10t": ("model.name", "resnet10t"),
    "model=torchvision model.name=mobilenet_v3_small": ("network", "torchvision"),
    "dataset=folder dataset.root=PETS": ("dataset.name", "folder"),
    "model.pretrained=NETWORK": ("model.pretrained_digest", DIGEST),
    "measure_sharpness=true": ("measure_sharpness", True),
    "cuda_graphs=false": ("cuda_graphs", False),
    "keep_network=false": ("keep_network", False),
}


def keys_of(option: str) -> set[str]:
    """The keys that an option sets, and of which it has its effect."""
    return {word.partition("=")[0] for word in option.split()} | {OPTIONS[option][0]}


PAIRS = [pair for pair in itertools.combinations(OPTIONS, 2) if not keys_of(pair[0]) & keys_of(pair[1])]


@pytest.fixture(scope="module", autouse=True)
def _files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The working folder is one with the images PETS, and with the file NETWORK, which holds weights."""
    folder = tmp_path_factory.mktemp("pairs")
    make_own_images(folder / "PETS", images=30)
    (folder / "NETWORK").write_bytes(CONTENT)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


def value_of(spec: RunSpec, key: str) -> Any:
    value: Any = spec.dump()
    for name in key.split("."):
        value = value[name]
    return value


def outcome(action: Callable[[], Any]) -> Any:
    """What the action returns, or the one sentence that it is refused with; a traceback fails the test."""
    try:
        return action()
    except InputError as error:
        sentence = str(error)
    assert "\n" not in sentence
    assert sentence.endswith((".", "?"))
    return sentence


def test_every_option_is_right_by_itself() -> None:
    for option, (key, value) in OPTIONS.items():
        alone = [*option.split(), "scheme=gnr"] if option == "scheme.gamma_ratio=1.5" else option.split()
        alone += ["recipe.perturbation_batch=null"] * (option == "scheme.normalise_clean=true")
        assert value_of(compose(["scale=smoke", *alone]), key) == value, option


@pytest.mark.parametrize("chosen", [["scale=smoke"], ["scale=paper"], ["scale=digits"]], ids=" ".join)
def test_a_pair_gives_both_keys_their_values_or_is_refused(chosen: list[str]) -> None:
    # At scale digits a data set stands for a share of wrong labels, and an augmentation has a form for small images.
    replaced = {option for option in OPTIONS if option.split("=")[0] in ("dataset", "augmentation")}
    possible = OPTIONS.keys() - (replaced if chosen == ["scale=digits"] else set())
    pairs = random.Random(chosen[0]).sample([pair for pair in PAIRS if possible.issuperset(pair)], 1000)
    print(f"\n{len(pairs)} of {len(PAIRS)} pairs of options are tried.")
    refused = 0
    for pair in pairs:
        spec = outcome(lambda pair=pair: compose([*chosen, *" ".join(pair).split()]))
        if isinstance(spec, str):
            refused += 1
            continue
        for option in pair:
            key, value = OPTIONS[option]
            assert value_of(spec, key) == value, f"{' '.join(pair)}: {option} is passed over"
    assert refused < len(pairs) / 2


def test_a_random_pair_trains_or_is_refused(tmp_path: Path) -> None:
    pairs = random.Random(0).sample(PAIRS, 60)
    trained = 0
    for pair in pairs:
        settings = ["scale=smoke", "device=cpu", "recipe.epochs=1", f"paths.runs={tmp_path}"]
        spec = outcome(lambda pair=pair, settings=settings: compose([*settings, *" ".join(pair).split()]))
        if not isinstance(spec, str) and spec.devices == 1:
            record = outcome(lambda spec=spec: train(spec, show_progress=False))
            assert isinstance(record, str) or record.done, pair
            trained += not isinstance(record, str)
    assert trained > 20
