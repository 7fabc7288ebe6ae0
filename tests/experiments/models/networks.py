"""The networks of ``configs/model``, built from their files alone."""

from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

CONFIGS = Path(__file__).parents[3] / "configs" / "model"
SLIM = CONFIGS / "slim" / "smoke"

# Numbers of trainable parameters with 10 and with 100 classes. They equal those of the networks of the paper's authors,
# except for ResNet18 (theirs, with a narrower stem, has 11,150,874) and WRN-28-10 (theirs, without the 1x1 shortcuts,
# has 36,220,634).
PARAMETERS = {
    "resnet18": (11_173_962, 11_220_132),
    "wrn28_10": (36_479_194, 36_536_884),
    "wrn16_1": (175_066, 180_916),
    "wrn16_2": (691_674, 703_284),
    "wrn10_1": (77_850, 83_700),
    "wrn10_2": (303_706, 315_316),
    "pyramidnet164": (27_215_989, 27_319_039),
    "vgg16_bn": (33_646_666, 34_015_396),
    "vit_ti": (5_362_762, 5_380_132),
    "vit_s": (21_342_346, 21_376_996),
    "vit_b": (85_152_010, 85_221_220),
}
IMAGENET_PARAMETERS = {"resnet50": 25_557_032, "resnet101": 44_549_160}
"""Numbers of trainable parameters with 1,000 classes."""

NAMES = sorted([*PARAMETERS, *IMAGENET_PARAMETERS])
CNNS = [name for name in NAMES if not name.startswith("vit")]
SMALL_IMAGE_CNNS = [name for name in CNNS if name not in ("vgg16_bn", "resnet50", "resnet101")]


def image_size_of(name: str) -> int:
    """Side in pixels of the images for which a network is meant."""
    return 224 if name in IMAGENET_PARAMETERS else 32


def model_config(name: str, slim: bool = False) -> DictConfig:
    """The config of a network, or of its slim version for smoke tests."""
    config = OmegaConf.load(CONFIGS / f"{name}.yaml")
    config.pop("defaults", None)
    slim_file = SLIM / f"{name}.yaml"
    return OmegaConf.merge(config, OmegaConf.load(slim_file).model) if slim and slim_file.exists() else config


def build(name: str, slim: bool = False, num_classes: int = 10, channels: int = 3, image_size: int = 0) -> nn.Module:
    """Build what ``model=<name>`` builds, from the file of the network and three keys of the data set alone."""
    dataset = {"num_classes": num_classes, "channels": channels, "image_size": image_size or image_size_of(name)}
    return instantiate(OmegaConf.create({"model": model_config(name, slim), "dataset": dataset}).model)


def build_without_memory(name: str, num_classes: int) -> nn.Module:
    """Build a network whose parameters have shapes but no values."""
    with torch.device("meta"):
        return build(name, num_classes=num_classes)


def batch(name: str, size: int = 4) -> tuple[Tensor, Tensor]:
    """Random images that fit a network, and labels of ten classes."""
    generator = torch.Generator().manual_seed(1)
    side = image_size_of(name)
    return torch.randn(size, 3, side, side, generator=generator), torch.arange(size) % 10


def slim_with_random_head(name: str) -> nn.Module:
    """A slim network whose logits depend on its input, which those of a new ViT do not: its head is zero."""
    torch.manual_seed(0)
    model = build(name, slim=True)
    if name.startswith("vit"):
        nn.init.normal_(model.get_parameter("head.weight"), std=0.1)
    return model
