"""The mathematics of diffusion: no networks and no files."""
