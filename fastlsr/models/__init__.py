"""Networks by name: own ones for small images, timm's for all else, with or without pretrained weights."""

from fastlsr.models.head import head_parameters
from fastlsr.models.pretrained import expected_normalization
from fastlsr.models.registry import build_model

__all__ = ["build_model", "expected_normalization", "head_parameters"]
