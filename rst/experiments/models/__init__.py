"""The networks of the paper: those of timm and torchvision with its settings, and our own where neither has them."""

from rst.experiments.models.pyramidnet import PyramidNet
from rst.experiments.models.resnet import imagenet_resnet, small_image_resnet
from rst.experiments.models.vgg import vgg_bn
from rst.experiments.models.vit import vision_transformer
from rst.experiments.models.wide_resnet import WideResNet

__all__ = ["PyramidNet", "WideResNet", "imagenet_resnet", "small_image_resnet", "vgg_bn", "vision_transformer"]
