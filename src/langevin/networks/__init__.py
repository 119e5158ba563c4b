"""Neural networks as torch modules: no mathematics of diffusion and no files."""
