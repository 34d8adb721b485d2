#!/usr/bin/env python3
"""Writes a data set's splits as `.beton` files, as `python -m fastlsr.write` does; runs in a clone as it is."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from fastlsr.write import main

if __name__ == "__main__":
    main()
