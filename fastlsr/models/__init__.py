"""Networks by name: our own for small images, and all of timm's; with or without pretrained weights."""

from fastlsr.models.head import Penultimate, features_and_templates, head_parameters
from fastlsr.models.pretrained import expected_normalization
from fastlsr.models.registry import build_model, network

__all__ = [
    "Penultimate",
    "build_model",
    "expected_normalization",
    "features_and_templates",
    "head_parameters",
    "network",
]
