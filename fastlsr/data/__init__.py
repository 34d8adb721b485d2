"""Images on disk, in `.beton` files and in batches; `ffcv_parts` is the only home of ffcv."""
