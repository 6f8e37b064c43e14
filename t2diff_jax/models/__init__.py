"""The retrieval models, one file each, all behind `types.Retriever`."""

import dataclasses

from t2diff_jax.config import Config
from t2diff_jax.models.bert4rec import BERT4Rec, BERT4RecNet
from t2diff_jax.models.caser import CaserNet
from t2diff_jax.models.comirec import ComiRecDRNet, ComiRecSANet
from t2diff_jax.models.contrast_vae import ContrastVAE, ContrastVAENet
from t2diff_jax.models.dat import DAT, DATNet
from t2diff_jax.models.diffurec import DiffuRec, DiffuRecNet
from t2diff_jax.models.drim import DRIM
from t2diff_jax.models.gru4rec import GRU4RecNet
from t2diff_jax.models.hstu import HSTUNet
from t2diff_jax.models.interests import MultiInterest
from t2diff_jax.models.mamba4rec import Mamba4RecNet
from t2diff_jax.models.mind import MINDNet
from t2diff_jax.models.mtmi import MTMI, MTMINet
from t2diff_jax.models.sasrec import SASRecNet
from t2diff_jax.models.sequential import Sequential, SequentialNet
from t2diff_jax.models.stosa import STOSANet
from t2diff_jax.models.t2diff import T2Diff
from t2diff_jax.models.t2diff_causal import T2DiffCausal
from t2diff_jax.models.two_tower import TwoTowerNet
from t2diff_jax.types import Retriever, Sizes


def build_retriever(config: Config, sizes: Sizes) -> Retriever:
    """The model that `config.model.name` names, for data of these sizes."""
    args = config.model, config.loss, sizes
    match config.model.name:
        case "t2diff":
            return T2Diff(config.model, config.diffusion, config.loss, sizes)
        case "t2diff_causal":
            return T2DiffCausal(config.model, config.diffusion, config.loss, sizes)
        case "bert4rec":
            return BERT4Rec(BERT4RecNet, *args)
        case "contrast_vae":
            return ContrastVAE(ContrastVAENet, *args)
        case "diffurec":
            return DiffuRec(DiffuRecNet, *args, config.diffusion)
        case "dat":
            return DAT(DATNet, *args)
        case "mind":
            return MultiInterest(MINDNet, *args)
        case "drim":
            return DRIM(MINDNet, *args)
        case "comirec_sa":
            return MultiInterest(ComiRecSANet, *args)
        case "comirec_dr":
            return MultiInterest(ComiRecDRNet, *args)
        case "mtmi":
            return MTMI(MTMINet, config.model, dataclasses.replace(config.loss, merge="max"), sizes)
        case _:
            return Sequential(_sequential_net(config.model.name), *args)


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
        case "stosa":
            return STOSANet
        case "two_tower":
            return TwoTowerNet
    raise ValueError(f"model.name: {name!r} is no model")
