"""All parts of a run, built from a config: data, model, mesh, state, compiled step. For training and evaluation."""

import dataclasses
import functools

import jax
import optax
from jax.sharding import Mesh

from t2diff_jax.config import Config
from t2diff_jax.config_values import as_computed, settled
from t2diff_jax.data.batches import TrainingOrder, Windows, batch_forms, make_batch_at
from t2diff_jax.data.catalogue import make_catalogue, make_sizes
from t2diff_jax.data.log import InteractionLog
from t2diff_jax.data.sources import load_log
from t2diff_jax.data.splits import Split, make_split
from t2diff_jax.evaluate import Evaluator
from t2diff_jax.models import build_retriever
from t2diff_jax.models.popularity import Popularity
from t2diff_jax.optim import make_optimizer
from t2diff_jax.sharding import batch_sharding, make_mesh, process_rows, put_batch, put_catalogue
from t2diff_jax.train_state import TrainState, abstract_state, make_state
from t2diff_jax.train_step import Step, compile_step
from t2diff_jax.types import Batch, Catalogue, Encoder, Retriever


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The parts. Nothing here is learned; `make_state` draws the initial parameters.

    Attributes:
      log, split: None in a dry run, which makes no batch.
      catalogue: on the devices, rows over the model axis; in a dry run its shapes.
      tx: the optimiser.
    """

    config: Config
    log: InteractionLog | None
    split: Split | None
    catalogue: Catalogue
    retriever: Retriever
    mesh: Mesh
    tx: optax.GradientTransformation

    def summary(self) -> str:
        """Two lines on what runs where."""
        log, devices, loss = self.log, jax.devices(), self.config.loss
        drawn = " and ".join(f"{n:,} {of}" for n, of in ((loss.negatives, "drawn"), (loss.batch_negatives, "met")) if n)
        softmax = f"{drawn} negatives" if loss.sampled else "all items"
        data = self.config.data
        return (
            f"{log.name}: {log.n_users:,} users, {log.n_items:,} items, {len(log.items):,} behaviours "
            f"(of users with at least {data.min_user_count}, items with at least {data.min_item_count})\n"
            f"{self.config.model.name}, softmax over {softmax}, on {len(devices)} {devices[0].device_kind} device(s), "
            f"{jax.process_count()} process(es), jax {jax.__version__}"
        )

    @functools.cached_property
    def order(self) -> TrainingOrder:
        """The sequence of training targets."""
        return TrainingOrder.of(self.split, self.config.data, self.config.seed)

    @functools.cached_property
    def host_batch_at(self):
        """step -> this process's rows of the step's batch, as numpy arrays."""
        size = self.config.train.batch_size
        windows = Windows.of(self.config)
        return make_batch_at(self.log, self.order, windows, size, process_rows(self.mesh, size), before=self._before)

    def batch_at(self, step: int) -> Batch:
        """The batch of a 0-based step, on the devices."""
        return put_batch(self.mesh, self.host_batch_at(step), self.config.train.batch_size)

    @functools.cached_property
    def _before(self) -> int:
        """S of a training batch: behaviours before the window that leave the softmax; no wider than the log needs."""
        loss, told = self.config.loss, self.config.dry_run.seen
        longest = told if self.log is None else self.order.longest_before
        return min(loss.seen_before, longest) if loss.exclude_seen else 0

    def training_forms(self) -> Batch:
        """Shapes and shardings of the global batch of a training step."""
        return self._forms(self.config.train.batch_size, before=self._before)

    def evaluation_forms(self, size: int, *, seen: int = 0) -> Batch:
        """Shapes and shardings of so many rows to evaluate; seen: S where earlier items are excluded, else 0."""
        return self._forms(size, seen=seen)

    def _forms(self, size: int, **widths: int) -> Batch:
        features, sharding = len(self.retriever.sizes.user_features), batch_sharding(self.mesh)
        forms = batch_forms(Windows.of(self.config), size, features, **widths)
        return {name: jax.ShapeDtypeStruct(*form, sharding=sharding) for name, form in forms.items()}

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """Shapes and shardings of the train state."""
        return abstract_state(self.mesh, self.catalogue, self.training_forms(), **self._recipe)

    def initial_state(self) -> TrainState:
        """The state before the first step."""
        return make_state(self.config.seed, self.abstract_state, self.catalogue, self.batch_at(0), **self._recipe)

    def compile_step(self) -> Step:
        """The jitted training step."""
        c = self.config
        args = dict(seed=c.seed, ema_decay=c.optim.ema, loss=c.loss, lazy=c.optim.lazy_rows)
        return compile_step(self.mesh, self.abstract_state, retriever=self.retriever, tx=self.tx, **args)

    def evaluator(self) -> Evaluator:
        """The evaluator of the model."""
        return self._evaluator(self.retriever)

    def popularity_evaluator(self) -> Evaluator:
        """The evaluator of the popularity baseline on the same targets."""
        return self._evaluator(Popularity())

    def _evaluator(self, retriever: Encoder) -> Evaluator:
        c = self.config
        return Evaluator(retriever, self.catalogue, self.log, Windows.of(c), c.eval, self.mesh, c.seed)

    @property
    def _recipe(self) -> dict:
        c = self.config
        args = dict(average=c.optim.ema > 0, count_draws=c.loss.batch_negatives > 0)
        return dict(retriever=self.retriever, tx=self.tx, **args)


def build(config: Config) -> Experiment:
    """Reads the log and builds everything. Raises `DataError` or `ConfigError` before anything is written."""
    mesh = make_mesh(config.mesh)
    log = load_log(config.data)
    config = settled(config, log.n_items, jax.default_backend())
    split = make_split(log, config.data, config.seed)
    host_catalogue = make_catalogue(log, split, config.model.row_multiple)
    sizes = make_sizes(log, host_catalogue, config)
    retriever = build_retriever(as_computed(config, jax.default_backend(), mesh.size), sizes)
    tx = make_optimizer(config.optim, config.train.steps)
    return Experiment(config, log, split, put_catalogue(mesh, host_catalogue), retriever, mesh, tx)
