"""Advice for a training that waits for its data."""

from fastlsr.config import Data
from fastlsr.data.manifest import Manifest

_MUCH_LARGER = 1.5  # a stored side over the side used: from here on decoding costs more than it has to


def remedies(
    manifest: Manifest, data: Data, *, resolution: int, workers: int, cores: int, memory_bytes: int, paired: bool
) -> list[str]:
    """Options that would make loading faster, each with the reason; the most promising first, at least one.

    Args:
        resolution: side of the network's input, pixels.
        workers: threads that decode now.
        cores: threads that could.
        memory_bytes: the machine's.
        paired: whether each image comes with another of its class, which needs the system's file cache.
    """
    side, found = max(manifest.heights[1], manifest.widths[1]), []
    if data.os_cache and not paired and manifest.bytes > memory_bytes:
        found.append("data.os_cache=false data.order=quasi_random (the file is larger than the memory)")
    if not data.os_cache and manifest.bytes < memory_bytes / 2:
        found.append("data.os_cache=true (the file fits into memory)")
    elif not data.os_cache and data.order == "random":
        found.append("data.order=quasi_random (with data.os_cache=false, a random order reads pages for a few images)")
    if workers < cores:
        found.append(f"data.workers={cores} (now {workers})")
    if side > _MUCH_LARGER * resolution:
        found.append(f"writing the file with a smaller --max-resolution ({side} pixels are stored, {resolution} used)")
    raw_bytes = manifest.count * manifest.heights[1] * manifest.widths[1] * 3
    if manifest.options.get("mode") != "raw" and raw_bytes < memory_bytes / 2:
        found.append("writing the file with --write-mode raw (nothing to decode, and it would still fit into memory)")
    return found or ["a smaller data.resolution, or more cores: every other remedy is taken"]
