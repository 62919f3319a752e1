"""I2VGen-XL in JAX: cascaded image-to-video diffusion (arXiv 2311.04145)."""
