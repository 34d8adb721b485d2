"""The source name of each sample of a `.beton`, in its order: a compressed text beside it, checked by its manifest.

`NAME_SPLIT.samples.gz` holds a line a sample: `CLASS/FILE` below the official folder of the images, or `train:123`, the
position in the official file as torchvision counts it. `zcat` prints it.
"""

import gzip
import hashlib
import os
import zlib
from collections.abc import Iterable
from pathlib import Path

from fastlsr.data.manifest import Manifest
from fastlsr.errors import InputError
from fastlsr.files import replace_file

_LEVEL = 6  # of gzip: 1.28 million names, as ImageNet's, take 5 MB and less than 1 s


def names_path(beton: Path) -> Path:
    """The path of the names: `cifar100_train.beton` -> `cifar100_train.samples.gz`."""
    return Path(beton).with_suffix(".samples.gz")


def write_names(names: Iterable[str], beton: Path) -> str:
    """Writes the names of the samples of `beton`, whole or not at all; returns the digest for its manifest.

    Equal names are equal bytes. A line break within a name becomes a space.
    """
    text = _text(names)
    content = gzip.compress(text, _LEVEL, mtime=0)
    replace_file(names_path(beton), lambda temporary: temporary.write_bytes(content))
    return hashlib.sha256(text).hexdigest()


def read_names(beton: Path, manifest: Manifest) -> list[str]:
    """The name of each sample of `beton`, in its order.

    Raises:
        InputError: if there is no such file, or it is another than the manifest's.
    """
    path = names_path(beton)
    if not manifest.names:
        raise InputError(f"{beton} was written without the names of its samples; write it again to have them")
    try:
        text = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or "it is damaged"
        raise InputError(f"{path} cannot be read: {reason}; write the data set again") from None
    if hashlib.sha256(text).hexdigest() != manifest.names:
        raise InputError(f"{path} is not the file that the manifest of {beton} vouches for; write the data set again")
    return os.fsdecode(text).split("\n")[:-1]


def _text(names: Iterable[str]) -> bytes:
    # File names need not be UTF-8: fsencode gives back their own bytes.
    return b"".join(os.fsencode(name.replace("\n", " ")) + b"\n" for name in names)
