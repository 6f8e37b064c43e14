"""The retrieval models, one file each, all behind `types.Retriever`."""

from t2diff_jax.config import Config
from t2diff_jax.models.sasrec import SASRec
from t2diff_jax.models.t2diff import T2Diff
from t2diff_jax.models.t2diff_causal import T2DiffCausal
from t2diff_jax.types import Retriever, Sizes


def build_retriever(config: Config, sizes: Sizes) -> Retriever:
    """The model that `config.model.name` names, for data of these sizes."""
    match config.model.name:
        case "t2diff":
            return T2Diff(config.model, config.diffusion, config.loss, sizes)
        case "t2diff_causal":
            return T2DiffCausal(config.model, config.diffusion, config.loss, sizes)
        case "sasrec":
            return SASRec(config.model, config.loss, sizes)
