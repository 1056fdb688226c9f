"""The paper's CIFAR networks. Importing this package registers them with timm.

``timm.create_model`` then knows ``wrn28_4``, ``wrn28_10``, ``densenet100_12``, ``alexnet_cifar``,
``vgg19_cifar`` and ``vgg19_bn_cifar``. They take images of 8x8 pixels and more and are never pretrained.
"""

from sparsetune.backbone.models.densenet import DenseNet, densenet100_12
from sparsetune.backbone.models.plain import VGG19, AlexNet, alexnet_cifar, vgg19_bn_cifar, vgg19_cifar
from sparsetune.backbone.models.wrn import WideResNet, wrn28_4, wrn28_10

__all__ = [
    "AlexNet",
    "DenseNet",
    "VGG19",
    "WideResNet",
    "alexnet_cifar",
    "densenet100_12",
    "vgg19_bn_cifar",
    "vgg19_cifar",
    "wrn28_4",
    "wrn28_10",
]
