"""All that is used of FFCV, without the costs and side effects of importing it.

FFCV's import compiles numba's typed dictionary for a table of two names (5 s of 6), and sets torch's threads to one.
With numba's compiler switched off during the import, that dictionary is a plain one and nothing is compiled. The price:
the helpers of FFCV's transform RandomResizedCrop, jitted at import otherwise, stay plain Python, so that this transform
must not be used.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numba.typed  # while the compiler is on, for others who need real typed dictionaries
import torch


@contextmanager
def _compiler_off_and_threads_kept() -> Iterator[None]:
    settings: Any = numba.config  # whose attributes are made at import
    threads, disabled = torch.get_num_threads(), settings.DISABLE_JIT
    settings.DISABLE_JIT = True
    try:
        yield
    finally:
        settings.DISABLE_JIT = disabled
        torch.set_num_threads(threads)


with _compiler_off_and_threads_kept():
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import IMAGE_MODES, SimpleRGBImageDecoder
    from ffcv.libffcv import lib as library
    from ffcv.loader import Loader as FFCVLoader
    from ffcv.loader import OrderOption
    from ffcv.loader.epoch_iterator import select_buffer
    from ffcv.memory_managers import OSCacheManager
    from ffcv.memory_managers.process_cache.schedule import compute_schedule
    from ffcv.pipeline.allocation_query import AllocationQuery
    from ffcv.pipeline.compiler import Compiler
    from ffcv.reader import Reader
    from ffcv.transforms import ToDevice, ToTensor, ToTorchImage

__all__ = [
    "IMAGE_MODES",
    "AllocationQuery",
    "Compiler",
    "FFCVLoader",
    "IntDecoder",
    "OSCacheManager",
    "OrderOption",
    "Reader",
    "SimpleRGBImageDecoder",
    "ToDevice",
    "ToTensor",
    "ToTorchImage",
    "compute_schedule",
    "library",
    "select_buffer",
]
