"""The page of results: `python -m t2diff_jax.results` (`__main__.py`)."""
