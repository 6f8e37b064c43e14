"""Convolution over the time axis, in the way that is quick on the device it is compiled for."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Convolution(nn.Module):
    """y_l = bias + sum_t kernel_t x_{l + (t - last) dilation}, zeros outside; the parameters are those of `nn.Conv`.

    Attributes:
      causal: the last tap stands at l; else the middle one, for an odd number of taps.
    """

    features: int
    taps: int
    causal: bool
    dilation: int
    use_bias: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B L C"]) -> Float[Array, "B L F"]:
        init = nn.initializers.lecun_normal(in_axis=(0, 1))
        kernel = self.param("kernel", init, (self.taps, x.shape[-1], self.features))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        reach = (self.taps - 1) * self.dilation
        left = reach if self.causal else reach // 2
        padded = jnp.pad(x, ((0, 0), (left, reach - left), (0, 0)))
        y = convolve(padded, kernel, self.dilation)
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)[None, None]
        return y


def convolve(x: Float[Array, "B N C"], kernel: Float[Array, "T C F"], dilation: int) -> Float[Array, "B L F"]:
    """sum_t x_{l + t dilation} kernel_t at the L = N - (T - 1) dilation places that have something under all taps.

    For CUDA as one matrix product: what cuDNN does with so few channels, unless it is tuned, is most of a training
    step. On a CPU the convolution is the quicker one, above all its gradient.
    """

    def native(x: Array, kernel: Array) -> Array:
        how = dict(rhs_dilation=(dilation,), dimension_numbers=("NWC", "WIO", "NWC"))
        return jax.lax.conv_general_dilated(x, kernel, (1,), "VALID", **how)

    return jax.lax.platform_dependent(x, kernel, cuda=lambda x, k: by_product(x, k, dilation), default=native)


def by_product(x: Float[Array, "B N C"], kernel: Float[Array, "T C F"], dilation: int) -> Float[Array, "B L F"]:
    """The same with what lies under the taps side by side, [B, L, T C] @ [T C, F]."""
    taps, channels, features = kernel.shape
    places = x.shape[1] - (taps - 1) * dilation
    under = jnp.concatenate([x[:, t * dilation : t * dilation + places] for t in range(taps)], axis=-1)
    return under @ kernel.reshape(taps * channels, features)
