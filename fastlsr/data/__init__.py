"""Images on disk, in `.beton` files and in batches; the only home of ffcv."""
