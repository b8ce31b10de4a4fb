"""The shape of a set of kernels: name -> function, one field a kernel.

Owns the record alone. A set replaces the functions it has faster twins of; the rest stay the
reference ones. The signatures are those of :mod:`flashmoe.kernels.reference` and ``mixers``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flashmoe.kernels import mixers, reference
from flashmoe.kernels.cuda.device import Device
from flashmoe.quant import Array, Matrix
from flashmoe.shape import AttentionShape


@dataclass(frozen=True)
class Kernels:
    """One set of kernels; ``dtype`` is that of the activations it takes and gives.

    ``block_bytes`` is the most memory the set holds for weights on their way to floats, in all
    its threads together; results and activations are not in it. ``instruction_set`` is the
    processor's that it computes with, where that shows in the last bits. ``unit_bytes`` is what all
    its threads together hold while a chunk attends, whatever its length and the context, beyond
    what the reference does (``stream.sizes``).
    """

    name: str
    dtype: np.dtype[Any]
    block_bytes: int
    instruction_set: str = ""
    device: Device | None = None
    unit_bytes: Callable[[AttentionShape], int] = lambda _: 0
    matmul: reference.Matmul = reference.matmul
    project: Callable[[Array, Sequence[Matrix]], tuple[Array, ...]] = reference.project
    swiglu: Callable[..., Array] = reference.swiglu
    experts: Callable[..., Array] = reference.experts
    rms_norm: Callable[[Array, Array, float], Array] = reference.rms_norm
    add: Callable[[Array, Array], Array] = reference.add
    attend: Callable[..., Array] = mixers.attend
    gated_delta: Callable[..., tuple[Array, tuple[Array, Array]]] = mixers.gated_delta
    attention_block: Callable[..., Array] = mixers.attention_block
    delta_block: Callable[..., tuple[Array, tuple[Array, Array]]] = mixers.delta_block
    route: Callable[[Array, int, bool], tuple[Array, Array]] = reference.route

    def scratch_bytes(self, attention: AttentionShape | None) -> int:
        """Both, for a model with such layers or none."""
        return self.block_bytes + (0 if attention is None else self.unit_bytes(attention))
