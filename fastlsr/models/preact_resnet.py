"""Pre-activation and wide residual networks for images of about 32 pixels.

The block is that of He et al. 2016b (Identity Mappings in Deep Residual Networks, arXiv:1603.05027, Fig. 4e); wide
networks have it with more channels (Zagoruyko and Komodakis 2016, Wide Residual Networks, arXiv:1605.07146, Table 1,
block B(3,3)). Every network ends in a normalisation and a ReLU (He et al. 2016b, appendix), which some public CIFAR
versions leave out. Initialisation: He et al. 2015, to which He et al. 2016b refer; as in the code of both papers, the
classifier's bias starts at 0.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fastlsr.models.resnet import conv3x3
from fastlsr.models.small import SmallImageNetwork, initialise_with_zero_bias, stages


class PreActBlock(nn.Module):
    """shortcut + two 3x3 convolutions, each after a normalisation and a ReLU.

    Where the shape changes, the shortcut is a 1x1 convolution without normalisation, of the activated input, as in the
    code of both papers. Set `activated_shortcut` to give the activated input to an identity shortcut, too.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels_in)
        self.conv1 = conv3x3(channels_in, channels_out, stride)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.conv2 = conv3x3(channels_out, channels_out)
        self.activated_shortcut = stride != 1 or channels_in != channels_out
        self.shortcut = (
            nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False)
            if self.activated_shortcut
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.norm1(x))
        residual = self.conv2(F.relu(self.norm2(self.conv1(activated))))
        return self.shortcut(activated if self.activated_shortcut else x) + residual


def _preact_network(*, stem: int, widths: Sequence[int], blocks: Sequence[int], classes: int) -> SmallImageNetwork:
    convolution = conv3x3(3, stem)
    body = stages(PreActBlock, channels=stem, widths=widths, blocks=blocks)
    first = body["stage1"][0]
    assert isinstance(first, PreActBlock)
    # He et al. 2016b, appendix: "we adopt the first activation right after conv1 and before splitting into two paths".
    first.activated_shortcut = True
    norm, relu = nn.BatchNorm2d(widths[-1]), nn.ReLU()
    features = nn.Sequential(OrderedDict(stem=convolution, **body, norm=norm, relu=relu))
    network = SmallImageNetwork(features, num_features=widths[-1], classes=classes)
    return initialise_with_zero_bias(network)


def preact_resnet(classes: int, *, blocks: Sequence[int]) -> SmallImageNetwork:
    """ResNet-18 (`blocks` 2, 2, 2, 2) or ResNet-34 (3, 4, 6, 3) of pre-activation blocks, 3x3 stem, no max-pool.

    11,218,340 and 21,326,500 parameters for 100 classes. He et al. 2016b describe no such network (theirs for CIFAR
    have bottlenecks); widths and blocks are those of He et al. 2016 (arXiv:1512.03385), Table 1.
    """
    return _preact_network(stem=64, widths=(64, 128, 256, 512), blocks=blocks, classes=classes)


def wide_resnet(classes: int, *, depth: int, widening: int) -> SmallImageNetwork:
    """WRN-`depth`-`widening` without dropout, depth 6n+4; WRN-40-4 has 8,972,340 parameters for 100 classes.

    The depth is the number of convolutions, with those of the three shortcuts (Zagoruyko and Komodakis 2016,
    section 3).
    """
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"depth {depth} is not 6n+4")
    widths = [width * widening for width in (16, 32, 64)]
    return _preact_network(stem=16, widths=widths, blocks=[(depth - 4) // 6] * 3, classes=classes)
