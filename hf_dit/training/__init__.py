"""From images to a trained pipeline: objectives, stream of samples, loop, one run."""
