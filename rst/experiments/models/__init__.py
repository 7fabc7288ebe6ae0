"""The networks of the paper, our own or timm's with its settings, and all others of timm and torchvision."""

from rst.experiments.models.libraries import timm_network, torchvision_network
from rst.experiments.models.pyramidnet import PyramidNet
from rst.experiments.models.resnet import imagenet_resnet, small_image_resnet
from rst.experiments.models.vgg import vgg_bn
from rst.experiments.models.vit import vision_transformer
from rst.experiments.models.wide_resnet import WideResNet

__all__ = [
    "PyramidNet",
    "WideResNet",
    "imagenet_resnet",
    "small_image_resnet",
    "timm_network",
    "torchvision_network",
    "vgg_bn",
    "vision_transformer",
]
