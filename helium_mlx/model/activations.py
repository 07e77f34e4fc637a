"""The activation functions that transformers' `hidden_act` can name, with transformers' constants.

Two of them, `prelu` and `xielu`, carry parameters: they are modules, and their tensors lie in the checkpoint under
`mlp.act_fn`. Names and formulas: `transformers.activations.ACT2CLS`.
"""

import math
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from helium_mlx.checkpoint.checkpoint import XIELU_DTYPE

Activation = Callable[[mx.array], mx.array]


def _gelu_tanh(x: mx.array) -> mx.array:
    return 0.5 * x * (1 + mx.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def _hard_swish(x: mx.array) -> mx.array:
    return x * mx.clip(x + 3, 0, 6) / 6


def _laplace(x: mx.array) -> mx.array:
    mean, deviation = 0.707107, 0.282095
    return 0.5 * (1 + mx.erf((x - mean) / (deviation * math.sqrt(2))))


def _mish(x: mx.array) -> mx.array:
    return x * mx.tanh(_softplus(x))


def _softplus(x: mx.array) -> mx.array:
    return mx.logaddexp(x, mx.array(0, x.dtype))


def _relu(x: mx.array) -> mx.array:
    return mx.maximum(x, 0)


def silu(x: mx.array) -> mx.array:
    """Return x * sigmoid(x)."""
    return x * mx.sigmoid(x)


ACTIVATIONS: dict[str, Activation] = {
    "gelu": nn.gelu,
    "gelu_10": lambda x: mx.clip(nn.gelu(x), -10, 10),
    "gelu_accurate": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_new": _gelu_tanh,
    "gelu_python": nn.gelu,
    "gelu_python_tanh": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "hardswish": _hard_swish,
    "laplace": _laplace,
    "leaky_relu": lambda x: mx.maximum(0.01 * x, x),
    "linear": lambda x: x,
    "mish": _mish,
    "quick_gelu": lambda x: x * mx.sigmoid(1.702 * x),
    "relu": _relu,
    "relu2": lambda x: mx.square(_relu(x)),
    "relu6": lambda x: mx.clip(x, 0, 6),
    "sigmoid": mx.sigmoid,
    "silu": silu,
    "sqrtsoftplus": lambda x: mx.sqrt(_softplus(x)),
    "swish": silu,
    "tanh": mx.tanh,
}


class PReLU(nn.Module):
    """max(x, 0) + weight * min(x, 0), one learned weight for all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = mx.full((1,), 0.25)

    def __call__(self, x: mx.array) -> mx.array:
        return mx.where(x >= 0, x, self.weight * x)


class XIELU(nn.Module):
    """xIELU (arXiv:2411.13010): a quadratic for positive inputs, an integrated ELU below, with learned slopes.

    `beta` and `eps` are constants, but transformers saves them as tensors, so they are tensors here too. All four are
    bfloat16 whatever dtype a model is loaded in, until it is cast (`set_dtype`). Slopes are rounded to that dtype, as
    in transformers.
    """

    dtype = XIELU_DTYPE
    constants = ("beta", "eps")

    def __init__(self) -> None:
        super().__init__()
        self.alpha_p = mx.full((1,), math.log(math.expm1(0.8)), self.dtype)
        self.alpha_n = mx.full((1,), math.log(math.expm1(0.8 - 0.5)), self.dtype)
        self.beta = mx.array(0.5, self.dtype)
        self.eps = mx.array(-1e-6, self.dtype)
        self.freeze(keys=list(self.constants))

    def __call__(self, x: mx.array) -> mx.array:
        alpha_p = self._slope(self.alpha_p)
        alpha_n = self.beta + self._slope(self.alpha_n)
        positive = alpha_p * x * x + self.beta * x
        negative = (mx.expm1(mx.minimum(x, self.eps)) - x) * alpha_n + self.beta * x
        return mx.where(x > 0, positive, negative).astype(x.dtype)

    @staticmethod
    def _slope(alpha: mx.array) -> mx.array:
        return _softplus(alpha.astype(mx.float32)).astype(alpha.dtype)


ACTIVATION_MODULES: dict[str, type[PReLU] | type[XIELU]] = {"prelu": PReLU, "xielu": XIELU}


def make_activation(name: str) -> Activation:
    """Return the function or a new module that `hidden_act` names; the name is one that the config has checked."""
    module = ACTIVATION_MODULES.get(name)
    return ACTIVATIONS[name] if module is None else module()
