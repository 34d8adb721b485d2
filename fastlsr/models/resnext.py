"""ResNeXt for images of about 32 pixels: Xie et al. 2017 (Aggregated Residual Transformations, arXiv:1611.05431).

Initialisation: He et al. 2015, to which the paper refers. As in the authors' code, fan_out of a grouped convolution
counts the output channels of all groups, and the classifier's bias starts at 0.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from fastlsr.models.resnet import conv3x3, projection_shortcut
from fastlsr.models.small import SmallImageNetwork, initialise_with_zero_bias, stages

TEMPLATE_OUT, TEMPLATE_WIDTH = 256, 64  # output channels and inner width of the bottleneck that is aggregated


class AggregatedBlock(nn.Module):
    """relu(shortcut(x) + bottleneck of a grouped 3x3 convolution), Xie et al. 2017, Fig. 3c.

    This equals the sum over `cardinality` paths of 1x1, 3x3 and 1x1 convolutions (Fig. 3a), normalised after the sum.
    `base_width` is the width of a path in the first stage; it doubles with the channels.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, *, cardinality: int, base_width: int):
        super().__init__()
        width = cardinality * base_width * channels_out // TEMPLATE_OUT
        self.conv1 = nn.Conv2d(channels_in, width, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride, groups=cardinality)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, channels_out, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(channels_out)
        same_shape = stride == 1 and channels_in == channels_out
        self.shortcut = nn.Identity() if same_shape else projection_shortcut(channels_in, channels_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        residual = F.relu(self.norm1(self.conv1(x)))
        residual = F.relu(self.norm2(self.conv2(residual)))
        return F.relu(self.shortcut(x) + self.norm3(self.conv3(residual)))


def resnext29(classes: int, *, cardinality: int, base_width: int) -> SmallImageNetwork:
    """ResNeXt-29, `cardinality` x `base_width`d, for CIFAR (Xie et al. 2017, section 5.3); 9 blocks of 3 layers.

    8x64d has 34,426,698 parameters for 10 classes (Table 7: 34.4 M), 34,518,948 for 100. The ReLU comes last in a
    block, as for ImageNet. The authors note that the arXiv paper's CIFAR results are those of pre-activation blocks of
    the same size, and that these do better (README of github.com/facebookresearch/ResNeXt).
    """
    block = partial(AggregatedBlock, cardinality=cardinality, base_width=base_width)
    widths = [TEMPLATE_OUT, 2 * TEMPLATE_OUT, 4 * TEMPLATE_OUT]
    stem = nn.Sequential(conv3x3(3, TEMPLATE_WIDTH), nn.BatchNorm2d(TEMPLATE_WIDTH), nn.ReLU(inplace=True))
    body = stages(block, channels=TEMPLATE_WIDTH, widths=widths, blocks=(3, 3, 3))
    features = nn.Sequential(OrderedDict(stem=stem, **body))
    network = SmallImageNetwork(features, num_features=widths[-1], classes=classes)
    return initialise_with_zero_bias(network)
