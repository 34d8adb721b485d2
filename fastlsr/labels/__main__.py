"""Soft labels by sample from annotations: python -m fastlsr.labels import FILE.csv --cfg FILE --out OUT.safetensors.

FILE.csv             its first column is `name`, as NAME_train.samples.gz lists them beside the .beton, or `index`, the
                     position in the .beton; the others are the classes, with probabilities or counts
--cfg FILE           which data, as for fastlsr.train; or --data.dataset, --data.dir, --data.train
--out FILE           the .safetensors file for --method.teacher of lsr_pre, tsla_pre and table
--missing=onehot     samples that the table lacks keep their one-hot label; by default they are an error
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

from fastlsr.cli import check_out, exit_on_input_error, interrupts_raised, print_help, read_arguments, wants_help
from fastlsr.config import load
from fastlsr.data.manifest import read_manifest
from fastlsr.data.splits import split_paths
from fastlsr.errors import InputError, unknown
from fastlsr.plugins import load_named

_OWN = ("out", "missing")
_OF_DATA = ("data.dataset", "data.dir", "data.train")


def main(arguments: list[str] | None = None) -> int:
    """The exit code of the command: 0 done, 2 wrong input, 130 interrupted; then nothing was written."""
    with exit_on_input_error():
        words = load_named(arguments)
        if wants_help(words):
            print_help(str(__doc__))
            return 0
        usage = "usage: python -m fastlsr.labels import FILE.csv --cfg FILE --out OUT.safetensors"
        if len(words) < 2 or words[0] != "import" or words[1].startswith("-"):
            raise InputError(usage)
        path, options, _ = read_arguments(words[2:])
        if "out" not in options:
            raise InputError(usage)
        out, missing = options.pop("out", ""), options.pop("missing", "error")
        for name in options:
            if name not in _OF_DATA:
                raise InputError(unknown("option here", f"--{name}", [f"--{key}" for key in (*_OWN, "cfg", *_OF_DATA)]))
        check_out(Path(out), ".safetensors")
        beton, _ = split_paths(load(path, options))
        classes = len(read_manifest(beton).classes)
        # Imported after these checks: it takes seconds.
        from fastlsr.data.imported_labels import MISSING, import_labels

        if missing not in MISSING:
            raise InputError(f"--missing={missing}: expected one of {', '.join(MISSING)}")
        with interrupts_raised():
            rows = import_labels(Path(words[1]), beton, Path(out), missing=missing)
        print(
            f"labels: {out}  {rows.seen:,} samples of {beton}  their highest is the data's in {rows.top1:.2f}%  "
            f"mean entropy {rows.entropy:.3f} of at most {math.log(classes):.3f} nats"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
