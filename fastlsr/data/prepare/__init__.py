"""From images in their official layouts to `.beton` files. Nothing here is loaded by training."""
