"""fastlsr: a fast, traceable trainer for label-smoothing research (TSLA, COLAM and their kin)."""

__version__ = "0.1.0"
