"""Residual networks for images of about 32 pixels.

`cifar_resnet` is section 4.2 of He et al. 2016 (Deep Residual Learning for Image Recognition, arXiv:1512.03385):
6n+2 layers, 16-32-64 channels, shortcuts without parameters. `resnet18` is the 18-layer ImageNet network of the same
paper with the usual changes for CIFAR: a 3x3 stem of stride 1, and no max-pool.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from fastlsr.models.small import SmallImageNetwork, he_initialise, stages

Shortcut = Callable[[int, int, int], nn.Module]  # (channels in, channels out, stride) -> module


def conv3x3(channels_in: int, channels_out: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A 3x3 convolution with padding 1, without bias because a normalisation follows."""
    return nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, groups=groups, bias=False)


class PaddedShortcut(nn.Module):
    """He et al. 2016, option A: every stride-th pixel, with channels of zeros appended up to the new width."""

    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        self.stride = stride
        self.new_channels = channels_out - channels_in

    def forward(self, x: Tensor) -> Tensor:
        # Pooling over one pixel, not x[:, :, ::stride, ::stride]: the gradient of that slice is never channels-last,
        # nor then are the gradients it is added to, down to the stem (on a CPU this costs 7% of a ResNet-8 step).
        return F.pad(F.avg_pool2d(x, 1, self.stride), (0, 0, 0, 0, 0, self.new_channels))


def projection_shortcut(channels_in: int, channels_out: int, stride: int) -> nn.Module:
    """He et al. 2016, option B: a 1x1 convolution and batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False),
        nn.BatchNorm2d(channels_out),
    )


class BasicBlock(nn.Module):
    """relu(shortcut(x) + two 3x3 convolutions), He et al. 2016, Fig. 5 left."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, shortcut: Shortcut):
        super().__init__()
        self.conv1 = conv3x3(channels_in, channels_out, stride)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = conv3x3(channels_out, channels_out)
        self.norm2 = nn.BatchNorm2d(channels_out)
        same_shape = stride == 1 and channels_in == channels_out
        self.shortcut = nn.Identity() if same_shape else shortcut(channels_in, channels_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        residual = F.relu(self.norm1(self.conv1(x)))
        residual = self.norm2(self.conv2(residual))
        return F.relu(self.shortcut(x) + residual)


def _resnet(*, widths: Sequence[int], blocks: int, shortcut: Shortcut, classes: int) -> SmallImageNetwork:
    """A 3x3 stem, then for each width a stage of `blocks` blocks."""
    stem = nn.Sequential(conv3x3(3, widths[0]), nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True))
    block = partial(BasicBlock, shortcut=shortcut)
    body = stages(block, channels=widths[0], widths=widths, blocks=[blocks] * len(widths))
    features = nn.Sequential(OrderedDict(stem=stem, **body))
    network = SmallImageNetwork(features, num_features=widths[-1], classes=classes)
    return network.apply(he_initialise)


def cifar_resnet(classes: int, *, depth: int) -> SmallImageNetwork:
    """The CIFAR network of 6n+2 = `depth` layers (He et al. 2016, section 4.2); 0.27 M parameters at 20, 0.85 M at 56.

    The paper does not say where option A puts the channels of zeros; here they follow the others.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth {depth} is not 6n+2")
    return _resnet(widths=(16, 32, 64), blocks=(depth - 2) // 6, shortcut=PaddedShortcut, classes=classes)


def resnet18(classes: int) -> SmallImageNetwork:
    """The 18-layer network (He et al. 2016, Table 1) with a 3x3 stem and no max-pool; 11.2 M parameters."""
    return _resnet(widths=(64, 128, 256, 512), blocks=2, shortcut=projection_shortcut, classes=classes)
