"""From images in their official layouts to `.beton` files. Training imports nothing of it."""
