"""T2Diff at every position of the window: what the configurations of that form share. Not a run by itself."""

from configs import base


def get_config():
    """The base configuration with `t2diff_causal`, rotary positions and windows that tile the histories."""
    config = base.get_config()
    config.data.training_targets = "tiled"
    config.model.name = "t2diff_causal"
    config.model.sketch_dim = 128
    config.model.init_sd = 0.02
    config.model.dropout = 0.2
    config.model.positions = "rotary"
    config.model.activation_hidden = 4  # with 16 the loss falls no faster
    config.diffusion.stop_gradient = False  # generator and tower as one network, the next item itself diffused
    config.diffusion.target = "item"
    config.optim.kernels = "muon"
    config.loss.chunk = 200
    config.optim.learning_rate = 2e-3
    return config
