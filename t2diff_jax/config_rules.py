"""What a configuration must satisfy beyond the types of its values: (holds, key, what to do) per rule."""

import math
import typing

if typing.TYPE_CHECKING:
    from t2diff_jax.config import Config

Rules = list[tuple[bool, str, str]]

WITH_SLOT = ("t2diff", "t2diff_causal")
OF_INTERESTS = ("mind", "comirec_sa", "comirec_dr", "drim", "mtmi")
_MIXTURES = ("sasrec", "bert4rec", "gru4rec", "caser", "mamba4rec", "hstu")  # what `model.vectors` is for
# What `model.behaviour_dropout` is for.
HIDING = ("t2diff_causal", "sasrec", "gru4rec", "caser", "mamba4rec", "hstu", "stosa", "contrast_vae")
HIDING += ("two_tower", "dat", *OF_INTERESTS)
_SCALED = ("t2diff_causal", *_MIXTURES, "contrast_vae", "diffurec")  # what `model.user_scale` is for
MODELS = (*WITH_SLOT, *_MIXTURES, "stosa", "contrast_vae", "diffurec", "two_tower", "dat", *OF_INTERESTS)


def rules(config: "Config") -> Rules:
    """All rules, in the order in which they are told."""
    of_models = (model_rules, dropout_rules, rival_rules, diffusion_rules, slot_rules)
    parts = (data_rules, *of_models, loss_rules, cold_rules, run_rules)
    return [rule for part in parts for rule in part(config)]


def data_rules(c: "Config") -> Rules:
    """Windows, protocols and targets."""
    d, shares = c.data, (c.data.test_users, c.data.validation_users)
    return [
        (c.seed >= 0, "seed", "must not be negative"),
        (
            d.window >= c.model.session_length,
            "data.window",
            "is shorter than model.session_length; raise it or shorten the session",
        ),
        (d.window >= 1, "data.window", "must be at least 1"),
        (d.protocol != "temporal" or d.real_times, "data.protocol", "temporal needs data.real_times=True"),
        (all(0 < share < 1 for share in shares), "data.test_users", "and data.validation_users must be in (0, 1)"),
        (0 < d.validation_cut < d.test_cut < 1, "data.validation_cut", "must be in (0, data.test_cut), that below 1"),
        (
            min(d.eval_positions, d.validation_positions, d.first_target) >= 1,
            "data.eval_positions",
            "data.validation_positions and data.first_target must be at least 1",
        ),
        (d.targets_per_user >= 1, "data.targets_per_user", "must be at least 1"),
        (d.prefetch >= 0, "data.prefetch", "must not be negative"),
        (d.table.category_separator != "", "data.table.category_separator", "must not be empty"),
        (
            not d.fixed_targets or d.training_targets == "drawn",
            "data.fixed_targets",
            "needs data.training_targets=drawn",
        ),
        (
            d.training_targets != "tiled" or c.model.name != "t2diff",
            "data.training_targets",
            "tiled is for models that learn from every position of a window: all but t2diff",
        ),
    ]


def model_rules(c: "Config") -> Rules:
    """Widths, heads and sessions."""
    m = c.model
    return [
        (m.session_length >= 1, "model.session_length", "must be at least 1"),
        (m.session_gap == 0 or c.data.real_times, "model.session_gap", "needs data.real_times=True"),
        (m.session_gap >= 0, "model.session_gap", "must not be negative"),
        (m.heads >= 1 and m.dim % m.heads == 0, "model.heads", "must divide model.dim"),
        (
            m.positions != "rotary" or m.dim % (2 * m.heads) == 0,
            "model.positions",
            "rotary needs an even width per head: model.dim / model.heads",
        ),
        (
            min(m.category_dim, m.content_dim, m.sketch_dim, m.layers) >= 0,
            "model",
            "category_dim, content_dim, sketch_dim and layers must not be negative",
        ),
        (
            min(m.hidden, m.activation_hidden, m.user_feature_dim, m.init_sd) > 0,
            "model",
            "hidden, activation_hidden, user_feature_dim and init_sd must be positive",
        ),
        (
            m.dim > m.category_dim + m.content_dim,
            "model.dim",
            f"{m.dim} must exceed model.category_dim + model.content_dim, {m.category_dim} + {m.content_dim}; set that "
            "to 0 of which the log has none",
        ),
        (
            m.item_tower == "dense" or m.user_tower == "ffn",
            "model.item_tower",
            "must be dense where user_tower is concat: the towers' widths differ",
        ),
        (m.user_tower == "ffn" or m.name == "t2diff", "model.user_tower", "concat is for t2diff"),
        (
            m.sketch_dim == 0 or m.name != "t2diff",
            "model.sketch_dim",
            "is for all models but t2diff, which is the paper's form",
        ),
        (m.row_multiple >= 1, "model.row_multiple", "must be at least 1"),
        (m.vectors >= 1, "model.vectors", "must be at least 1"),
        (
            m.vectors == 1 or m.name in _MIXTURES,
            "model.vectors",
            f"is for {', '.join(_MIXTURES)}; models with a slot have diffusion.samples, those of several interests "
            "model.interests.number",
        ),
        (m.user_scale > 0, "model.user_scale", "must be positive"),
        (
            m.user_scale == 1 or m.name in _SCALED,
            "model.user_scale",
            f"is for {', '.join(_SCALED)}; must be 1 for other models",
        ),
    ]


def dropout_rules(c: "Config") -> Rules:
    """What training hides from a model."""
    m = c.model
    return [
        (0 <= m.dropout < 1, "model.dropout", "must be in [0, 1)"),
        (0 <= m.sketch_dropout < 1, "model.sketch_dropout", "must be in [0, 1)"),
        (0 <= m.behaviour_dropout < 1, "model.behaviour_dropout", "must be in [0, 1)"),
        (
            m.behaviour_dropout == 0 or m.name in HIDING,
            "model.behaviour_dropout",
            f"is for {', '.join(HIDING)}; must be 0 for other models",
        ),
        (
            m.behaviour_dropout == 0 or m.name != "t2diff_causal" or c.diffusion.target == "item",
            "model.behaviour_dropout",
            "needs diffusion.target=item: a drift has to know the behaviour that it starts from",
        ),
    ]


def rival_rules(c: "Config") -> Rules:
    """What only one of the models has that T2Diff is measured against."""
    m, i = c.model, c.model.interests
    of_interests = m.name in OF_INTERESTS
    return [
        (0 <= m.bert4rec.masked <= 1, "model.bert4rec.masked", "must be in [0, 1]"),
        (min(m.caser.last, m.caser.horizontal, m.caser.vertical) >= 1, "model.caser", "sizes must be at least 1"),
        (
            min(m.mamba.state, m.mamba.conv, m.mamba.expand) >= 1 and m.mamba.chunk >= 0,
            "model.mamba",
            "sizes must be at least 1, chunk at least 0",
        ),
        (m.two_tower.temperature >= 0, "model.two_tower.temperature", "must not be negative"),
        (
            m.name != "dat" or m.two_tower.temperature > 0,
            "model.two_tower.temperature",
            "must be positive for dat, whose vectors have length 1",
        ),
        (0 <= m.dat.unknown_users < 1, "model.dat.unknown_users", "must be in [0, 1)"),
        (
            m.name != "dat" or m.dat.unknown_users > 0 or c.data.protocol == "leave_one_out",
            "model.dat.unknown_users",
            "must be positive where users are tested whom training never met: else nothing stands for their ids",
        ),
        (min(m.dat.mimic, m.dat.alignment) >= 0, "model.dat", "weights must not be negative"),
        (min(i.number, i.iterations) >= 1, "model.interests", "number and iterations must be at least 1"),
        (
            min(i.last, i.label_power, i.diversity_weight) >= 0,
            "model.interests",
            "last, label_power and diversity_weight must not be negative",
        ),
        (
            i.label_power == 0 or i.label_power >= 1,
            "model.interests.label_power",
            "must be 0 or at least 1: below, nothing limits the gradient of a product of 0",
        ),
        (
            i.label_power == 0 or m.name in ("mind", "drim"),
            "model.interests.label_power",
            "is for mind and drim; in other models the nearest interest speaks alone",
        ),
        (
            m.name not in ("mind", "drim") or i.number <= _most_interests(i.last or c.data.window),
            "model.interests.number",
            "exceeds the log2 of the behaviours that interests are made of: the rest would never speak",
        ),
        (not of_interests or c.eval.merge == "max", "eval.merge", "must be max for models of several interests"),
        (
            m.contrast_vae.temperature > 0 and min(m.contrast_vae.kl_weight, m.contrast_vae.contrast_weight) >= 0,
            "model.contrast_vae",
            "temperature must be positive, weights not negative",
        ),
    ]


def _most_interests(behaviours: int) -> int:
    """max(1, floor(log2 n))."""
    return max(1, behaviours.bit_length() - 1)


def diffusion_rules(c: "Config") -> Rules:
    """The process, its network and its sampler."""
    d = c.diffusion
    return [
        (d.steps >= 1, "diffusion.steps", "must be at least 1"),
        (1 <= d.sampler_steps <= d.steps, "diffusion.sampler_steps", "must be in 1..diffusion.steps"),
        (
            d.sampler != "ddpm" or d.sampler_steps == d.steps,
            "diffusion.sampler_steps",
            "must equal diffusion.steps for the ddpm sampler; use ddim for fewer",
        ),
        (len(d.filters) >= 1 and min(d.filters) >= 1, "diffusion.filters", "needs levels of at least one channel"),
        (d.head_hidden >= 1, "diffusion.head_hidden", "must be at least 1"),
        (d.head_blocks >= 0, "diffusion.head_blocks", "must not be negative"),
        (min(d.kl_weight, d.mixing) >= 0, "diffusion", "kl_weight and mixing must not be negative"),
        (d.step_dim >= 2 and d.step_dim % 2 == 0, "diffusion.step_dim", "must be even and at least 2"),
        (
            d.scale > 0 and d.scale * math.exp(min(d.rate, 99)) < 1,
            "diffusion.scale",
            "must be positive, and beta_T = scale * exp(rate) below 1: lower scale or rate",
        ),
        (d.weight >= 0, "diffusion.weight", "must not be negative"),
        (0 <= d.scale_decay < 1, "diffusion.scale_decay", "must be in [0, 1)"),
    ]


def slot_rules(c: "Config") -> Rules:
    """What fills the slot, in how many intents."""
    d = c.diffusion
    return [
        (d.samples >= 1, "diffusion.samples", "must be at least 1"),
        (
            d.samples == 1 or c.model.name in WITH_SLOT,
            "diffusion.samples",
            f"is for {' and '.join(WITH_SLOT)}; must be 1 for other models, some of which have model.vectors",
        ),
        (
            c.model.slot in ("diffusion", "empty") or c.model.name == "t2diff_causal",
            "model.slot",
            "must be diffusion or empty but for t2diff_causal",
        ),
        (
            c.model.slot not in ("learned", "regressor", "vae", "gan", "oracle") or d.sampler_steps == 1,
            "diffusion.sampler_steps",
            "must be 1 where model.slot is no diffusion",
        ),
        (
            c.model.slot not in ("empty", "oracle") or d.samples == 1,
            "diffusion.samples",
            "must be 1 where there is one intent: model.slot is empty or oracle",
        ),
        (
            c.model.slot != "regressor" or d.samples == 1 or d.noise == "intent",
            "diffusion.samples",
            "must be 1 where model.slot is regressor, but with diffusion.noise=intent",
        ),
        (
            max(d.samples, c.model.vectors) == 1 or c.loss.label_smoothing == 0,
            "diffusion.samples",
            "and model.vectors must be 1 with loss.label_smoothing, which is not defined for a mixture",
        ),
        (
            d.noise == "request" or c.model.name != "t2diff",
            "diffusion.noise",
            "intent is for t2diff_causal, which learns several intents together",
        ),
        (
            d.estimate == "vector"
            or c.model.sequential
            or (c.model.name == "t2diff_causal" and c.model.slot not in ("vae", "gan", "diffurec")),
            "diffusion.estimate",
            "catalogue is for t2diff_causal with model.slot diffusion or regressor",
        ),
        (
            d.estimate == "vector" or c.model.sequential or not c.loss.sampled,
            "diffusion.estimate",
            "catalogue scores every item: it needs the full softmax (no negatives)",
        ),
    ]


def loss_rules(c: "Config") -> Rules:
    """The softmax over the catalogue."""
    return [
        (c.loss.chunk >= 0, "loss.chunk", "must not be negative"),
        (c.loss.block >= 0, "loss.block", "must not be negative"),
        (
            c.loss.block == 0 or (c.loss.chunk == 0 and not c.loss.sampled and c.loss.label_smoothing == 0),
            "loss.block",
            "needs loss.chunk, loss.negatives, loss.batch_negatives and loss.label_smoothing to be 0",
        ),
        (
            c.loss.block == 0 or c.diffusion.estimate == "vector" or c.model.sequential,
            "loss.block",
            "needs diffusion.estimate=vector: the other has a matrix of all targets and items of its own",
        ),
        (
            c.loss.block == 0 or (c.loss.merge != "max" and c.model.name != "mtmi"),
            "loss.block",
            "must be 0 with loss.merge=max, which mtmi always learns by",
        ),
        (c.loss.negatives >= -1, "loss.negatives", "must be at least 0, or -1 for what `auto` says"),
        (c.auto.negatives >= 1, "auto.negatives", "must be at least 1"),
        (c.loss.batch_negatives >= 0, "loss.batch_negatives", "must not be negative"),
        (0 < c.loss.frequency_decay <= 1, "loss.frequency_decay", "must be in (0, 1]"),
        (
            not c.loss.exclude_seen or c.eval.exclude_seen,
            "loss.exclude_seen",
            "needs eval.exclude_seen=True: such a model learns nothing of the scores of seen items",
        ),
        (c.loss.seen_before >= 0, "loss.seen_before", "must not be negative"),
        (0 <= c.loss.label_smoothing < 1, "loss.label_smoothing", "must be in [0, 1)"),
        (
            c.loss.label_smoothing == 0 or not c.loss.sampled,
            "loss.label_smoothing",
            "needs the softmax over the whole catalogue: no negatives",
        ),
    ]


def cold_rules(c: "Config") -> Rules:
    """The pre-ranker."""
    k = c.cold
    sizes = (k.requests, k.candidates, k.negatives, k.steps, k.later, k.check_every, k.batch_size)
    sizes += (*k.cutoffs, *k.hidden, *k.keep)
    return [
        (min(sizes) >= 1 and k.learning_rate > 0, "cold", "sizes, steps and learning_rate must be positive"),
        (len(k.hidden) >= 1, "cold.hidden", "needs at least one layer"),
        (
            len(k.cutoffs) >= 1 and max(k.cutoffs, default=0) <= k.candidates,
            "cold.cutoffs",
            "needs cut-offs of at most cold.candidates",
        ),
    ]


def run_rules(c: "Config") -> Rules:
    """Training, evaluation and devices."""
    o, t, e = c.optim, c.train, c.eval
    intervals = (t.log_every, t.eval_every, t.checkpoint_every, t.keep)
    return [
        (t.steps >= 0, "train.steps", "must not be negative"),
        (t.batch_size >= 1, "train.batch_size", "must be at least 1"),
        (min(intervals) >= 1, "train", "intervals and keep must be at least 1"),
        (min(e.batch_size, e.block, e.noise_keys) >= 1, "eval", "batch_size, block, noise_keys must be at least 1"),
        (len(e.ks) > 0 and min(e.ks) >= 1, "eval.ks", "needs cut-offs of at least 1"),
        (0 < e.search_recall <= 1, "eval.search_recall", "must be in (0, 1]"),
        (e.select in metric_names(e.ks), "eval.select", f"must be one of {', '.join(metric_names(e.ks))}"),
        (o.learning_rate > 0 and 0 <= o.ema < 1, "optim", "learning_rate must be positive and ema in [0, 1)"),
        (o.table_rate > 0, "optim.table_rate", "must be positive"),
        (
            not o.lazy_rows or c.loss.sampled or c.loss.negatives == -1,
            "optim.lazy_rows",
            "needs loss.negatives or loss.batch_negatives",
        ),
        (
            min(o.warmup, o.decay_steps, o.weight_decay, o.clip_norm) >= 0,
            "optim",
            "warmup, decay_steps, weight_decay and clip_norm must not be negative",
        ),
        (
            min(c.prepare.block_rows, c.prepare.bucket_rows) >= 1,
            "prepare",
            "block_rows and bucket_rows must be positive",
        ),
        (c.dry_run.n_items >= 1, "dry_run.n_items", "must be at least 1"),
        (
            min(c.dry_run.categories, c.dry_run.content, c.dry_run.seen) >= 0 and c.dry_run.categories_per_item >= 1,
            "dry_run",
            "categories, content and seen must not be negative, categories_per_item must be at least 1",
        ),
        (min(c.dry_run.user_features, default=1) >= 1, "dry_run.user_features", "must be at least 1 each"),
        (c.dry_run.n_users >= 1, "dry_run.n_users", "must be at least 1"),
        (
            c.mesh.model >= 1 and (c.mesh.data == -1 or c.mesh.data >= 1),
            "mesh",
            "axes must be at least 1 (data: or -1)",
        ),
    ]


def metric_names(ks: tuple[int, ...]) -> list[str]:
    """Names of the ranking metrics at the cut-offs `ks`."""
    return [f"{name}@{k}" for name in ("recall", "mrr", "ndcg") for k in ks]
