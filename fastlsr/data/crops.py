"""Which crop an image gets, by the options and by the sizes that the file holds."""

from fastlsr.config import LARGEST_SMALL_IMAGE, Data
from fastlsr.data.augment import Crop, central_crop, padded_crop, random_resized_crop, whole_image
from fastlsr.data.manifest import Manifest
from fastlsr.errors import InputError

_PHOTOGRAPH_RESOLUTION = 224


def input_resolution(manifest: Manifest, data: Data) -> int:
    """Side of the network's input, pixels: as configured, else the images' own if all are equal and small, else 224."""
    return data.resolution or _own_side(manifest) or _PHOTOGRAPH_RESOLUTION


def training_crop(manifest: Manifest, data: Data) -> Crop:
    """The crop of training. `data.augment` "none" leaves out the flips, too.

    Raises:
        InputError: pad_crop of images that are not all of the input's size.
    """
    resolution = input_resolution(manifest, data)
    if data.augment == "none":
        return evaluation_crop(manifest, data)
    if data.augment == "pad_crop" and not _all_are_square(manifest, resolution):
        raise InputError(f"data.augment=pad_crop needs images of {resolution} x {resolution} pixels; use resized_crop")
    if data.augment == "pad_crop" or (data.augment == "auto" and _own_side(manifest) == resolution):
        return padded_crop(resolution, flip=data.flip)
    return random_resized_crop(resolution, flip=data.flip)


def evaluation_crop(manifest: Manifest, data: Data) -> Crop:
    """The crop of evaluation: the whole image if it is small and of the input's size, else the central crop."""
    resolution = input_resolution(manifest, data)
    if _own_side(manifest) == resolution:
        return whole_image(resolution)
    return central_crop(resolution)


def _all_are_square(manifest: Manifest, side: int) -> bool:
    return {*manifest.heights, *manifest.widths} == {side}


def _own_side(manifest: Manifest) -> int:
    """Side of the images if they are all equal, square and small; else 0."""
    side = manifest.heights[0]
    return side if side <= LARGEST_SMALL_IMAGE and _all_are_square(manifest, side) else 0
