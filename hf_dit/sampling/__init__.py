"""From noise to pictures: the pipeline, and grids of images."""
