"""The training step: pure, counted, keyed by the step, and deaf to rows of weight 0."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from t2diff_jax.sharding import put_batch


class Runner:
    """The compiled step of a tiny run on one device; the caller's state survives it."""

    def __init__(self, **changes):
        self.experiment = tiny.build((1, 1), **changes)
        self.start = self.experiment.initial_state()
        self.donating = self.experiment.compile_step()

    def __call__(self, state, batch):
        return self.donating(jax.tree.map(jnp.copy, state), self.experiment.catalogue, batch)

    def batch(self, step, change=None):
        """The batch of a step; `change` edits its host arrays."""
        rows = {name: value.copy() for name, value in self.experiment.host_batch_at(step).items()}
        if change is not None:
            change(rows)
        return put_batch(self.experiment.mesh, rows, len(rows["weight"]))


@pytest.fixture(scope="module")
def run():
    return Runner(optim__ema=0.9, optim__warmup=0, optim__learning_rate=0.01)


def test_the_same_inputs_give_the_same_bits(run):
    before = tiny.host(run.start)
    first, second = (run(run.start, run.batch(0)) for _ in range(2))
    tiny.assert_same_bits(first, second)
    assert all(before[name].tobytes() == leaf.tobytes() for name, leaf in tiny.host(run.start).items())


def test_the_state_is_donated(run):
    state = jax.tree.map(jnp.copy, run.start)
    new, _ = run.donating(state, run.experiment.catalogue, run.batch(0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((new, run.experiment.catalogue)))


def test_steps_are_counted_and_name_the_noise(run):
    batch = run.batch(0)
    state, at_0 = run(run.start, batch)
    assert state.step == 1 and state.step.dtype == jnp.int32
    later, at_7 = run(run.start._replace(step=run.start.step + 7), batch)
    assert later.step == 8
    for name in ("loss_tower", "loss_diffusion"):  # dropout and diffusion noise
        assert at_0[name] != at_7[name]


@pytest.mark.parametrize(("step", "decay"), [(0, 0.1), (8, 0.5), (1000, 0.9)])
def test_the_average_follows_fast_at_first(run, step, decay):
    state = run.start._replace(step=run.start.step + step)
    new, _ = run(state, run.batch(0))
    params, old, ema = tiny.host(new.params), tiny.host(state.ema), tiny.host(new.ema)
    for name in ema:
        expected = decay * old[name].astype(np.float64) + (1 - decay) * params[name]
        np.testing.assert_allclose(ema[name], expected, atol=1e-6, err_msg=name)


def test_statistics_are_updated_not_learned(run):
    new, metrics = run(run.start, run.batch(0))
    np.testing.assert_allclose(new.stats["drift_weight"], 1 - run.experiment.config.diffusion.scale_decay, rtol=1e-5)
    scale = np.sqrt(new.stats["drift_square"] / new.stats["drift_weight"])
    np.testing.assert_allclose(metrics["drift_scale"], scale, rtol=1e-5)
    # Embeddings of standard deviation 0.1: a difference of two has about 1.4 times that.
    assert 0.05 < scale < 0.25


def test_the_loss_falls(run):
    state, losses = run.start, []
    for step in range(30):
        state, metrics = run(state, run.batch(step))
        losses.append(float(metrics["loss_tower"]))
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.1
    assert state.step == 30


def test_rows_of_weight_0_change_nothing(run):
    def unweighted(rows, junk):
        rows["weight"][10:] = 0
        if junk:
            generator = np.random.default_rng(0)
            for name in ("history", "target"):
                shape = rows[name][10:].shape
                rows[name][10:] = generator.integers(1, run.experiment.log.n_items + 1, shape)
            rows["session_length"][10:] = 1
            rows["user"][10:] += 1

    state, metrics = run(run.start, run.batch(0, lambda rows: unweighted(rows, False)))
    again, junk_metrics = run(run.start, run.batch(0, lambda rows: unweighted(rows, True)))
    _, whole = run(run.start, run.batch(0))
    tiny.assert_close(metrics, junk_metrics, atol=1e-6)
    tiny.assert_close(state.params, again.params, atol=1e-6)
    tiny.assert_close(state.stats, again.stats, atol=1e-7)
    assert abs(metrics["loss"] - whole["loss"]) > 1e-4


def test_a_batch_of_weight_0_teaches_nothing(run):
    def empty(rows):
        for name in rows:
            rows[name][:] = 0

    new, metrics = run(run.start, run.batch(0, empty))
    tiny.assert_same_bits(new.params, run.start.params)
    tiny.assert_same_bits(new.stats, run.start.stats)
    assert metrics["loss"] == 0 and metrics["grad_norm"] == 0


def test_metrics_tell_that_something_is_not_finite(run):
    params = jax.tree.map(jnp.copy, run.start.params)
    params["mixed"]["user_out"]["bias"] = params["mixed"]["user_out"]["bias"].at[0].set(jnp.inf)
    _, metrics = run(run.start._replace(params=params), run.batch(0))
    assert not np.isfinite(metrics["loss"]) and not np.isfinite(metrics["grad_norm"])


def test_every_step_draws_its_own_negatives_and_counts_them():
    run = Runner(model__name="sasrec", model__dropout=0.0, loss__negatives=4, loss__batch_negatives=4)
    batch = run.batch(0)
    state, at_0 = run(run.start, batch)
    _, again = run(run.start, batch)
    _, at_1 = run(run.start._replace(step=run.start.step + 1), batch)  # all but the step is the same
    assert at_0["loss"] == again["loss"] != at_1["loss"]
    before, after = tiny.host(run.start.frequencies), tiny.host(state.frequencies)
    assert before and all(np.any(before[name] != after[name]) for name in before)
