"""DenseNet-BC for images of about 32 pixels: Huang et al. 2017 (Densely Connected Networks, arXiv:1608.06993).

Initialisation: He et al. 2015, to which the paper refers; as in the authors' code, the classifier's bias starts at 0.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlsr.models.resnet import conv3x3
from fastlsr.models.small import SmallImageNetwork, initialise_with_zero_bias

BOTTLENECK = 4  # the 1x1 convolution of a layer has 4k output channels (section 3, "Bottleneck layers")
DENSE_BLOCKS = 3


class DenseLayer(nn.Module):
    """The input and `growth` new channels: BN-ReLU-Conv(1x1)-BN-ReLU-Conv(3x3), Huang et al. 2017, section 3.

    A block's feature maps are one tensor, to which each layer appends. For the backward pass a layer keeps that tensor,
    its activation and the 4k maps, each once.
    """

    def __init__(self, channels_in: int, growth: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, BOTTLENECK * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(BOTTLENECK * growth)
        self.conv2 = conv3x3(BOTTLENECK * growth, growth)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv1(F.relu(self.norm1(x)))
        new = self.conv2(F.relu(self.norm2(new)))
        return torch.cat((x, new), 1)


class Transition(nn.Sequential):
    """Halves the channels (compression 0.5) and the side, Huang et al. 2017, section 3."""

    def __init__(self, channels: int):
        convolution = nn.Conv2d(channels, channels // 2, 1, bias=False)
        super().__init__(nn.BatchNorm2d(channels), nn.ReLU(), convolution, nn.AvgPool2d(2))


def densenet_bc(classes: int, *, depth: int, growth: int) -> SmallImageNetwork:
    """DenseNet-BC of `depth` 6n+4 layers and growth rate k = `growth`, without dropout (as used with augmentation).

    L=100, k=12: 769,162 parameters for 10 classes and 800,032 for 100 (Table 2: 0.8 M).
    """
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"depth {depth} is not 6n+4")
    channels = 2 * growth
    parts: OrderedDict[str, nn.Module] = OrderedDict(stem=conv3x3(3, channels))
    for number in range(1, DENSE_BLOCKS + 1):
        layers = (depth - 4) // 6
        parts[f"block{number}"] = nn.Sequential(*(DenseLayer(channels + i * growth, growth) for i in range(layers)))
        channels += layers * growth
        if number < DENSE_BLOCKS:
            parts[f"transition{number}"] = Transition(channels)
            channels //= 2
    parts["norm"] = nn.BatchNorm2d(channels)
    parts["relu"] = nn.ReLU()
    network = SmallImageNetwork(nn.Sequential(parts), num_features=channels, classes=classes)
    return initialise_with_zero_bias(network)
