"""Frozen dataclasses per component, and the one conversion from a `ConfigDict`. Defaults: `configs/base.py` only."""

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from t2diff_jax.config_rules import MODELS, WITH_SLOT, rules

ASIDE = ("prepare", "auto", "dry_run", "mesh", "eval", "cold")  # sections that may change from start to start


class ConfigError(ValueError):
    """A key that does not exist, is missing, or holds a value that cannot be used."""


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
    init_sd: float
    layers: int
    heads: int
    hidden: int
    dropout: float
    positions: typing.Literal["learned", "rotary"]
    vectors: int
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

    items: int
    categories: int
    categories_per_item: int
    content: int
    user_features: tuple[int, ...]
    users: int
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


def from_mapping(values: Mapping[str, Any] | ConfigDict) -> Config:
    """The conversion from a `ConfigDict` (or a dict read back from JSON) to a validated `Config`.

    Raises:
      ConfigError: names the key, what is wrong, and the closest existing key.
    """
    config = _convert(Config, dict(values.items()), "config")
    for ok, key, message in rules(config):
        if not ok:
            raise ConfigError(f"config.{key}: {message}")
    return config


def settled(config: Config, n_items: int, device: str) -> Config:
    """The configuration with `loss.negatives=-1` replaced by what it comes to; others as they are.

    device: "cpu", "gpu" or "tpu".

    Raises:
      ConfigError: what it comes to does not go with another setting.
    """
    if config.loss.negatives != -1:
        return config
    loss = config.loss
    bound = {"cpu": config.auto.full_cpu, "gpu": config.auto.full_gpu, "tpu": config.auto.full_tpu}[device]
    names_items = config.diffusion.estimate == "catalogue" and not config.model.sequential
    needs_all = loss.block > 0 or loss.label_smoothing > 0 or names_items
    drawn = loss.batch_negatives > 0 or (n_items > bound and not needs_all)
    loss = dataclasses.replace(loss, negatives=config.auto.negatives if drawn else 0)
    optim = dataclasses.replace(config.optim, lazy_rows=drawn)
    return from_mapping(to_dict(dataclasses.replace(config, loss=loss, optim=optim)))


def to_dict(config: Config) -> dict[str, Any]:
    """A plain dict that `from_mapping` reads back to an equal `Config`, also after JSON."""
    return dataclasses.asdict(config)


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted names of the keys in which two configurations differ, with (old, new) values."""
    a, b = _flatten(to_dict(old)), _flatten(to_dict(new))
    return {k: (a[k], b[k]) for k in a if a[k] != b[k]}


def resume_conflicts(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """The differences that forbid going on in an old run: all but `train.steps`, evaluation, devices, file places."""
    free = ("train.steps", "train.compilation_cache", "data.path", *(f"{name}." for name in ASIDE))
    return {k: v for k, v in differences(old, new).items() if not k.startswith(free)}


def check_overrides(arguments: Sequence[str]) -> None:
    """Checks the names in `--config.a.b=value` arguments, before a flag parser meets them.

    Raises:
      ConfigError: names the first that is no key, and the closest one.
    """
    for argument in arguments:
        if not (match := re.match(r"--?config\.([\w.]+)", argument)):
            continue
        section, path = Config, "config"
        for name in match[1].split("."):
            names = list(typing.get_type_hints(section)) if dataclasses.is_dataclass(section) else []
            if name not in names:
                raise ConfigError(_no_such_key(path, name, names))
            section, path = typing.get_type_hints(section)[name], f"{path}.{name}"


def _no_such_key(path: str, key: str, known: list[str]) -> str:
    if not known:
        return f"{path}.{key}: {path} is a value and has no keys"
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean {path}.{close[0]}?" if close else f"; known keys: {', '.join(known)}"
    return f"{path}.{key}: no such key{hint}"


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def _convert(cls: type, values: Mapping[str, Any], path: str) -> Any:
    hints = typing.get_type_hints(cls)
    names = list(hints)
    for key in values:
        if key not in hints:
            raise ConfigError(_no_such_key(path, key, names))
    missing = [n for n in names if n not in values]
    if missing:
        raise ConfigError(f"{path}.{missing[0]}: missing; start from configs/base.py, which names every key")
    return cls(**{name: _value(hints[name], values[name], f"{path}.{name}") for name in names})


def _value(hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping) and not hasattr(value, "items"):
            raise ConfigError(f"{path}: expected a section, got {value!r}")
        return _convert(hint, dict(value.items()), path)
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        if value not in typing.get_args(hint):
            raise ConfigError(f"{path}: {value!r} is none of {', '.join(map(repr, typing.get_args(hint)))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{path}: expected a sequence, got {value!r}")
        return tuple(_value(typing.get_args(hint)[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        name = hint.__name__ if not isinstance(hint, types.UnionType) else str(hint)
        raise ConfigError(f"{path}: expected {name}, got {value!r}")
    return value
