"""What all our networks for small images share: feature extractor, global average pooling, one linear classifier."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from torch import Tensor, nn


class SmallImageNetwork(nn.Module):
    """Logits of small images: `features`, global average pooling, then the linear classifier `fc`.

    A family supplies only `features`, a module from float[B, 3, H, W] to float[B, D, h, w]. The methods have the names
    and meanings of those of timm's models, so that code which needs the classifier or its inputs (a separate learning
    rate, penultimate features, class templates) is the same for all models.
    """

    def __init__(self, features: nn.Module, *, num_features: int, classes: int):
        super().__init__()
        self.features = features
        self.num_features = num_features
        self.fc = nn.Linear(num_features, classes)

    def forward_features(self, images: Tensor) -> Tensor:
        """Feature maps, float[B, D, h, w]."""
        return self.features(images)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits float[B, K] of the feature maps; with `pre_logits` the classifier's inputs, float[B, D]."""
        pooled = features.mean((2, 3))
        return pooled if pre_logits else self.fc(pooled)

    def get_classifier(self) -> nn.Linear:
        """The layer that outputs the logits."""
        return self.fc

    def forward(self, images: Tensor) -> Tensor:
        """Logits, float[B, K], of normalised images, float[B, 3, H, W]."""
        return self.forward_head(self.forward_features(images))


def he_initialise(module: nn.Module) -> None:
    """Draws the weight of a convolution from N(0, 2 / fan_out); for `Module.apply`.

    He et al. 2015 (arXiv:1502.01852, Eqs. 10 and 14), to which He et al. 2016 refer for all their networks. The paper
    derives both fan_in and fan_out and finds either sufficient; this is fan_out. Normalisation and classifier layers,
    which it leaves open, keep PyTorch's defaults.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def initialise_with_zero_bias(network: SmallImageNetwork) -> SmallImageNetwork:
    """The network, after `he_initialise` and with the bias of its classifier set to 0."""
    network.apply(he_initialise)
    nn.init.zeros_(network.fc.bias)
    return network


def stages(
    block: Callable[[int, int, int], nn.Module], *, channels: int, widths: Sequence[int], blocks: Sequence[int]
) -> OrderedDict[str, nn.Sequential]:
    """Stages of residual blocks, named stage1, stage2, ...; each but the first halves the side of the image.

    Args:
        block: (channels in, channels out, stride) -> module.
        channels: input channels of the first stage.
        widths: output channels of each stage.
        blocks: number of blocks of each stage.
    """
    made: OrderedDict[str, nn.Sequential] = OrderedDict()
    for number, (width, count) in enumerate(zip(widths, blocks, strict=True), start=1):
        first = block(channels, width, 1 if number == 1 else 2)
        made[f"stage{number}"] = nn.Sequential(first, *(block(width, width, 1) for _ in range(count - 1)))
        channels = width
    return made
