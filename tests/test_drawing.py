"""Colours: told apart by readers with and without full colour vision, and seen on both pages."""

import itertools

import numpy as np
import pytest

from fastlsr.drawing import METHOD_COLOURS, line_styles

# What linear RGB becomes for a reader without red or green cones (Machado, Oliveira and Fernandes 2009, severity 1).
VISIONS = {
    "full": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])  # of linear sRGB
COLOURS = sorted(set(METHOD_COLOURS.values()))


def linear(colour):
    """Linear RGB, 0 to 1, of #rrggbb."""
    encoded = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    """CIELAB of linear RGB, under D65."""
    ratios = XYZ @ rgb / XYZ.sum(1)
    x, y, z = np.where(ratios > 0.008856, np.cbrt(ratios), 7.787 * ratios + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISIONS)
def test_any_two_colours_of_methods_are_told_apart(vision):
    seen = [lab(np.clip(VISIONS[vision] @ linear(colour), 0, 1)) for colour in COLOURS]
    assert min(np.linalg.norm(one - other) for one, other in itertools.combinations(seen, 2)) > 30


def test_every_colour_is_seen_on_a_white_and_on_a_dark_page():
    luminances = [XYZ[1] @ linear(colour) for colour in COLOURS]
    dark = XYZ[1] @ linear("#15171a")
    assert all(1.05 / (each + 0.05) > 2 and (each + 0.05) / (dark + 0.05) > 2 for each in luminances)


def test_settings_that_share_a_colour_differ_in_dashes():
    looks = [tuple(map(str, look.values())) for look in line_styles([*METHOD_COLOURS, "tsla", "hard", "tsla"])]
    assert len(set(looks)) == len(looks)
