"""Gaussian diffusion on arrays: schedule, process, samplers. No flax, no model."""
