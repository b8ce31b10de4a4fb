"""The shape of a set of kernels: name -> function, one field a kernel.

Owns the record alone. A set replaces the functions it has faster twins of; the rest stay the
reference ones. The signatures are those of :mod:`flashmoe.kernels.reference`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from flashmoe.kernels import reference
from flashmoe.quant import Array, Expert


@dataclass(frozen=True)
class Kernels:
    """One set of kernels; ``dtype`` is that of the activations it takes and gives.

    ``block_bytes`` is the most memory the set holds for weights on their way to floats, in all
    its threads together; results and activations are not in it.
    """

    name: str
    dtype: np.dtype[Any]
    block_bytes: int
    matmul: reference.Matmul = reference.matmul
    swiglu: Callable[[Array, Expert], Array] = reference.swiglu
    experts: Callable[..., Array] = reference.experts
    rms_norm: Callable[[Array, Array, float], Array] = reference.rms_norm
    rotary: Callable[[Array, int, int, float], Array] = reference.rotary
    attention: Callable[[Array, Array, Array], Array] = reference.attention
    causal_conv: Callable[..., tuple[Array, Array]] = reference.causal_conv
    delta_rule: Callable[..., tuple[Array, Array]] = reference.delta_rule
    route: Callable[[Array, int, bool], tuple[Array, Array]] = reference.route
