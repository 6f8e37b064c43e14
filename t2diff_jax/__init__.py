"""T2Diff: two-tower retrieval with diffusion over the interest drift, in JAX."""
