"""Linen blocks, one idea per file."""
