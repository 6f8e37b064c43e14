"""The retrieval models, one file each, all behind `types.Retriever`."""

from t2diff_jax.config import Config
from t2diff_jax.models.bert4rec import BERT4Rec, BERT4RecNet
from t2diff_jax.models.caser import CaserNet
from t2diff_jax.models.gru4rec import GRU4RecNet
from t2diff_jax.models.hstu import HSTUNet
from t2diff_jax.models.mamba4rec import Mamba4RecNet
from t2diff_jax.models.sasrec import SASRecNet
from t2diff_jax.models.sequential import Sequential, SequentialNet
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
        case "bert4rec":
            return BERT4Rec(BERT4RecNet, config.model, config.loss, sizes)
        case _:
            return Sequential(_sequential_net(config.model.name), config.model, config.loss, sizes)


def _sequential_net(name: str) -> type[SequentialNet]:
    match name:
        case "sasrec":
            return SASRecNet
        case "gru4rec":
            return GRU4RecNet
        case "caser":
            return CaserNet
        case "mamba4rec":
            return Mamba4RecNet
        case "hstu":
            return HSTUNet
    raise ValueError(f"model.name: {name!r} is no model")
