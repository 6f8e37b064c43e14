"""In the style of DRIM (Li et al. 2021), whose formulas are not public: MIND with interests that are kept apart."""

import dataclasses

import jax

from t2diff_jax import repel
from t2diff_jax.models.interests import MultiInterest


@dataclasses.dataclass(frozen=True)
class DRIM(MultiInterest):
    """The retriever: `model.interests.diversity` says by what, as one of the three strategies that the paper names."""

    def repel(self, users: jax.Array, active: jax.Array) -> jax.Array:
        """[B, L]."""
        match self.model.interests.diversity:
            case "cosine":
                return repel.squared_cosine(users, active)
            case "correlation":
                return repel.squared_correlation(users, active)
            case "distance":
                return repel.near(users, active, self.model.interests.margin)
        raise ValueError(f"model.interests.diversity: {self.model.interests.diversity!r}")
