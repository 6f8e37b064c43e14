"""The configuration as frozen dataclasses, one per component. What a key means, and its default: `configs/base.py`."""

import dataclasses
import typing

from t2diff_jax.config_rules import MODELS, WITH_SLOT


@dataclasses.dataclass(frozen=True)
class MovieLensConfig:
    """`data.movielens`: `configs/base.py` says what each key means."""

    min_rating: float


@dataclasses.dataclass(frozen=True)
class KuaiRandConfig:
    """`data.kuairand`: `configs/base.py` says what each key means."""

    logs: tuple[str, ...]
    clicks_only: bool
    tab: int


@dataclasses.dataclass(frozen=True)
class TableConfig:
    """`data.table`: `configs/base.py` says what each key means."""

    user: str
    item: str
    time: str
    item_file: str
    category: str
    category_separator: str
    title: str
    user_file: str
    user_columns: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class TfdsConfig:
    """`data.tfds`: `configs/base.py` says what each key means."""

    name: str


@dataclasses.dataclass(frozen=True)
class SyntheticConfig:
    """`data.synthetic`: `configs/base.py` says what each key means."""

    seed: int
    n_users: int
    n_items: int
    categories: int
    mean_length: int


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """`data`: `configs/base.py` says what each key means."""

    source: typing.Literal["synthetic", "movielens", "kuairand", "table", "tfds", "prepared"]
    path: str
    min_user_count: int
    min_item_count: int
    categories: bool
    user_features: bool
    content: str
    real_times: bool
    window: int
    protocol: typing.Literal["user_holdout", "leave_one_out", "temporal"]
    test_users: float
    validation_users: float
    eval_positions: int
    validation_positions: int
    first_target: int
    validation_cut: float
    test_cut: float
    training_targets: typing.Literal["drawn", "every", "tiled"]
    targets_per_user: int
    fixed_targets: bool
    prefetch: int
    movielens: MovieLensConfig
    kuairand: KuaiRandConfig
    table: TableConfig
    tfds: TfdsConfig
    synthetic: SyntheticConfig


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """`prepare`: `configs/base.py` says what each key means."""

    block_rows: int
    bucket_rows: int


@dataclasses.dataclass(frozen=True)
class BERT4RecConfig:
    """`model.bert4rec`: `configs/base.py` says what each key means."""

    masked: float


@dataclasses.dataclass(frozen=True)
class CaserConfig:
    """`model.caser`: `configs/base.py` says what each key means."""

    last: int
    horizontal: int
    vertical: int


@dataclasses.dataclass(frozen=True)
class MambaConfig:
    """`model.mamba`: `configs/base.py` says what each key means."""

    state: int
    conv: int
    expand: int
    chunk: int


@dataclasses.dataclass(frozen=True)
class TwoTowerConfig:
    """`model.two_tower`: `configs/base.py` says what each key means."""

    temperature: float


@dataclasses.dataclass(frozen=True)
class DATConfig:
    """`model.dat`: `configs/base.py` says what each key means."""

    behaviours: bool
    unknown_users: float
    mimic: float
    alignment: float


@dataclasses.dataclass(frozen=True)
class InterestsConfig:
    """`model.interests`: `configs/base.py` says what each key means."""

    number: int
    last: int
    iterations: int
    label_power: float
    diversity: typing.Literal["cosine", "correlation", "distance"]
    diversity_weight: float
    margin: float


@dataclasses.dataclass(frozen=True)
class ContrastVAEConfig:
    """`model.contrast_vae`: `configs/base.py` says what each key means."""

    kl_weight: float
    contrast_weight: float
    temperature: float


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """`model`: `configs/base.py` says what each key means."""

    name: typing.Literal[MODELS]
    dim: int
    category_dim: int
    content_dim: int
    user_feature_dim: int
    sketch_dim: int
    sketch_dropout: float
    init_sd: float
    layers: int
    heads: int
    hidden: int
    dropout: float
    behaviour_dropout: float
    positions: typing.Literal["learned", "rotary"]
    vectors: int
    user_scale: float
    attend_self: bool
    session_length: int
    session_gap: int
    activation_hidden: int
    user_tower: typing.Literal["ffn", "concat"]
    item_tower: typing.Literal["identity", "dense"]
    slot: typing.Literal["diffusion", "empty", "learned", "regressor", "vae", "gan", "diffurec", "oracle"]
    dtype: typing.Literal["float32", "bfloat16"]
    row_multiple: int
    bert4rec: BERT4RecConfig
    caser: CaserConfig
    mamba: MambaConfig
    two_tower: TwoTowerConfig
    dat: DATConfig
    interests: InterestsConfig
    contrast_vae: ContrastVAEConfig

    @property
    def sequential(self) -> bool:
        """Whether the model has no slot for a generated item."""
        return self.name not in WITH_SLOT


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """`diffusion`: `configs/base.py` says what each key means."""

    schedule: typing.Literal["exponential", "linear", "logarithmic"]
    steps: int
    scale: float
    rate: float
    filters: tuple[int, ...]
    step_dim: int
    head_hidden: int
    head_blocks: int
    target: typing.Literal["drift", "item"]
    estimate: typing.Literal["vector", "catalogue"]
    weight: float
    slot_training: typing.Literal["sampled", "denoised"]
    stop_gradient: bool
    sampler: typing.Literal["ddim", "ddpm"]
    sampler_steps: int
    clamp_known: bool
    samples: int
    noise: typing.Literal["request", "intent"]
    scale_decay: float
    kl_weight: float
    mixing: float


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """`loss`: `configs/base.py` says what each key means."""

    chunk: int
    block: int
    negatives: int
    batch_negatives: int
    frequency_decay: float
    window_negatives: bool
    exclude_seen: bool
    seen_before: int
    label_smoothing: float
    merge: typing.Literal["softmax_mean", "logsumexp", "max"]

    @property
    def sampled(self) -> bool:
        """Whether the softmax is over negatives that a step draws, not over the catalogue."""
        return self.negatives > 0 or self.batch_negatives > 0


@dataclasses.dataclass(frozen=True)
class ColdConfig:
    """`cold`: `configs/base.py` says what each key means."""

    requests: int
    candidates: int
    negatives: int
    cutoffs: tuple[int, ...]
    hidden: tuple[int, ...]
    keep: tuple[int, ...]
    steps: int
    later: int
    check_every: int
    batch_size: int
    learning_rate: float


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """`optim`: `configs/base.py` says what each key means."""

    learning_rate: float
    warmup: int
    decay: typing.Literal["cosine", "constant"]
    decay_steps: int
    kernels: typing.Literal["adam", "muon"]
    tables: typing.Literal["adam", "adagrad"]
    table_rate: float
    weight_decay: float
    clip_norm: float
    ema: float
    lazy_rows: bool


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """`train`: `configs/base.py` says what each key means."""

    steps: int
    batch_size: int
    log_every: int
    eval_every: int
    checkpoint_every: int
    keep: int
    compilation_cache: str


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """`eval`: `configs/base.py` says what each key means."""

    batch_size: int
    ks: tuple[int, ...]
    select: str
    noise_keys: int
    exclude_seen: bool
    merge: typing.Literal["max", "softmax_mean", "logsumexp"]
    block: int
    search: typing.Literal["float32", "bfloat16", "int8"]
    search_recall: float
    popularity: bool


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """`mesh`: `configs/base.py` says what each key means."""

    data: int
    model: int


@dataclasses.dataclass(frozen=True)
class AutoConfig:
    """`auto`: `configs/base.py` says what each key means."""

    full_cpu: int
    full_gpu: int
    full_tpu: int
    negatives: int


@dataclasses.dataclass(frozen=True)
class DryRunConfig:
    """`dry_run`: `configs/base.py` says what each key means."""

    n_items: int
    categories: int
    categories_per_item: int
    content: int
    user_features: tuple[int, ...]
    n_users: int
    seen: int


@dataclasses.dataclass(frozen=True)
class Config:
    """The whole configuration of a run."""

    seed: int
    data: DataConfig
    prepare: PrepareConfig
    model: ModelConfig
    diffusion: DiffusionConfig
    loss: LossConfig
    cold: ColdConfig
    optim: OptimConfig
    train: TrainConfig
    eval: EvalConfig
    auto: AutoConfig
    dry_run: DryRunConfig
    mesh: MeshConfig
