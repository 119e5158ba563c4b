"""The families of picture models that diffusion is compared with, on the same data, loop, checkpoints and metrics."""
