"""All that is used of FFCV, without what importing it costs and leaves behind.

FFCV's import compiles numba's typed dictionary for a table of two names (5 s of 6), and sets torch's threads to one.
While numba's compiler is switched off its typed dictionaries are plain ones, and nobody compiles that table's lookup.
What else is jitted at import stays plain Python: the helpers of FFCV's transform RandomResizedCrop, which is not
used here, and cannot be after this.
"""

from contextlib import contextmanager

import numba.typed  # before the compiler is off, for all who do want typed dictionaries
import torch


@contextmanager
def _compiler_off_and_threads_kept():
    threads, disabled = torch.get_num_threads(), numba.config.DISABLE_JIT
    numba.config.DISABLE_JIT = True
    try:
        yield
    finally:
        numba.config.DISABLE_JIT = disabled
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
