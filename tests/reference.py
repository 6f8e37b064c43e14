"""Naive numpy references: the definitions, position by position, sharing nothing with the product code."""

import numpy as np


def softmax(logits, mask):
    """Softmax of a vector among the unmasked entries; zeros where there are none."""
    out = np.zeros(len(logits))
    if mask.any():
        e = np.exp(logits[mask] - logits[mask].max())
        out[mask] = e / e.sum()
    return out


def cross_entropy(scores, target, smoothing=0.0):
    """-sum_j q_j log softmax_j of one row of scores; q is the target smoothed towards uniform."""
    scores = np.asarray(scores, np.float64)
    log_p = scores - scores.max() - np.log(np.exp(scores - scores.max()).sum())
    q = np.full(len(scores), smoothing / len(scores))
    q[target] += 1 - smoothing
    return -(q * log_p).sum()


def dense(p, x):
    """x W + b."""
    return x @ p["kernel"] + p.get("bias", 0)


def layer_norm(p, x):
    """Zero mean and unit variance over the last axis, then scale and bias."""
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-6) * p["scale"] + p["bias"]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def swish(x):
    return x * sigmoid(x)


def gelu(x):
    """The tanh approximation."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def self_attention(p, x, mask):
    """x [L, D], mask [L, L] (row: the query); heads from the kernel's shape [D, H, E]."""
    query, key, value = (np.einsum("ld,dhe->lhe", x, p[n]["kernel"]) + p[n]["bias"] for n in ("query", "key", "value"))
    out = np.zeros_like(x)
    for i in range(len(x)):
        for h in range(query.shape[1]):
            a = softmax(key[:, h] @ query[i, h] / np.sqrt(query.shape[2]), mask[i])
            out[i] += (a @ value[:, h]) @ p["out"]["kernel"][h]
    return out + p["out"]["bias"]


def encoder(p, x, mask):
    """Pre-norm transformer encoder of one window."""
    x = x + p["positions"]
    for i in range(sum(name.startswith("block_") for name in p)):
        b = p[f"block_{i}"]
        x = x + self_attention(b["attention"], layer_norm(b["norm_attention"], x), mask)
        x = x + dense(b["out"], gelu(dense(b["hidden"], layer_norm(b["norm_hidden"], x))))
    return layer_norm(p["norm"], x)


def target_attention(p, x, h, mask, lag=None):
    """sum_j a_j x_j with the activation unit evaluated on the concatenation, pair by pair (20, 21)."""
    kernel = p["kernel"].reshape(-1, p["kernel"].shape[-1])
    logits = np.zeros(len(x))
    for j in range(len(x)):
        unit = np.concatenate([x[j], x[j] - h, x[j] * h, h]) @ kernel + p["bias"]
        if lag is not None:
            unit = unit + p["lag"][lag[j]]
        logits[j] = (swish(unit) @ p["score"])[0]
    return softmax(logits, mask) @ x


def slot_attention(p, slot, behaviours, mask):
    """The block for one slot [D]: it attends to the behaviours [L, D] that its mask [L] allows, and to itself."""
    tokens = layer_norm(p["norm_attention"], np.concatenate([behaviours[mask], slot[None]]))
    query, key, value = (
        np.einsum("ld,dhe->lhe", tokens, p[n]["kernel"]) + p[n]["bias"] for n in ("query", "key", "value")
    )
    out = slot + p["mix"]["bias"]
    for h in range(query.shape[1]):
        a = softmax(key[:, h] @ query[-1, h] / np.sqrt(query.shape[2]), np.ones(len(tokens), bool))
        out = out + (a @ value[:, h]) @ p["mix"]["kernel"][h]
    return out + dense(p["out"], gelu(dense(p["hidden"], layer_norm(p["norm_hidden"], out))))


def conv3(kernel, x):
    """Convolution of width 3 over the first axis, zeros outside."""
    padded = np.pad(x, ((1, 1), (0, 0)))
    return np.stack([sum(padded[i + j] @ kernel[j] for j in range(3)) for i in range(len(x))])


def causal_conv3(kernel, x, dilation=1):
    """Convolution over a position and those `dilation` and twice that before it, zeros outside."""
    padded = np.pad(x, ((2 * dilation, 0), (0, 0)))
    return np.stack([sum(padded[i + j * dilation] @ kernel[j] for j in range(3)) for i in range(len(x))])


def step_embedding(r, width):
    angles = [r * 10_000 ** (-i / max(width // 2 - 1, 1)) for i in range(width // 2)]
    return np.concatenate([np.sin(angles), np.cos(angles)])


def denoiser(p, z, r, condition):
    """The network that denoises one position: vectors z and condition, one r."""
    blocks = sum(name.startswith("block_") for name in p)
    step = swish(dense(p["step_in"], step_embedding(r, p["step_in"]["kernel"].shape[0])))
    shift = dense(p["condition"], condition) + dense(p["step"], step)
    x = dense(p["drift"], z)
    for i in range(blocks):
        x = x + dense(p[f"block_{i}"], swish(layer_norm(p[f"norm_{i}"], x) + shift))
    return dense(p["out"], swish(layer_norm(p["norm"], x) + shift))


def unet(p, z, condition, r, causal=False):
    """The U-Net on one window without padding, its first convolution over [z ; X]; the length fits the pooling."""
    levels = sum(name.startswith("up_") for name in p)
    told = "step_mlp" in p  # which diffusion step it is
    step = swish(dense(p["step_mlp"], step_embedding(r, p["step_mlp"]["kernel"].shape[0]))) if told else None

    def level(q, x, i):
        x = convolve(q["conv"]["kernel"], x, i) + q["conv"]["bias"] + (dense(q["step"], step) if told else 0)
        return swish(layer_norm(q["norm"], x))

    def convolve(kernel, x, i=0):
        return causal_conv3(kernel, x, 2**i) if causal else conv3(kernel, x)

    def coarser(x, i):
        if causal:
            return np.stack([np.maximum(x[j], x[j - 2**i]) if j >= 2**i else x[j] for j in range(len(x))])
        return np.maximum(x[0::2], x[1::2])

    kernel = np.concatenate([p["drift"]["kernel"], p["condition"]["kernel"]], axis=1)
    x = convolve(kernel, np.concatenate([z, condition], axis=1))
    x = x + p["condition"]["bias"] + (dense(p["first_step"], step) if told else 0)
    skips = [swish(layer_norm(p["first_norm"], x))]
    for i in range(levels):
        skips.append(level(p[f"down_{i}"], coarser(skips[-1], i), i + 1))
    x = skips.pop()
    for i in reversed(range(levels)):
        x = dense(p[f"up_{i}"], x)
        x = x if causal else np.repeat(x, 2, axis=0)
        x = level(p[f"merge_{i}"], np.concatenate([x, skips[i]], axis=1), i)
    return dense(p["out"], x)


def ddpm(beta, estimate, noise):
    """Algorithm 2 with the posterior of (5), (6); beta [T + 1] with beta[0] = 0."""
    abar, steps = np.cumprod(1 - beta), len(beta) - 1
    z = noise(steps + 1)
    for r in range(steps, 0, -1):
        from_z0 = np.sqrt(abar[r - 1]) * beta[r] / (1 - abar[r])
        from_z = np.sqrt(1 - beta[r]) * (1 - abar[r - 1]) / (1 - abar[r])
        variance = (1 - abar[r - 1]) / (1 - abar[r]) * beta[r]
        z = from_z0 * estimate(z, r) + from_z * z + np.sqrt(variance) * noise(r)
    return z


def ddim(beta, estimate, noise, steps):
    """Deterministic sampling through the descending `steps`."""
    abar = np.cumprod(1 - beta)
    z = noise(len(beta))
    for now, following in zip(steps, [*steps[1:], 0], strict=True):
        z0 = estimate(z, now)
        eps = (z - np.sqrt(abar[now]) * z0) / np.sqrt(1 - abar[now])
        z = np.sqrt(abar[following]) * z0 + np.sqrt(1 - abar[following]) * eps
    return z
