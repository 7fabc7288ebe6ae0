"""The networks of the paper: from timm and torchvision where they have them, our own code where they do not."""

from rst.models.pyramidnet import PyramidNet
from rst.models.resnet import imagenet_resnet, small_image_resnet
from rst.models.vgg import vgg_bn
from rst.models.vit import vision_transformer
from rst.models.wide_resnet import WideResNet

__all__ = ["PyramidNet", "WideResNet", "imagenet_resnet", "small_image_resnet", "vgg_bn", "vision_transformer"]
