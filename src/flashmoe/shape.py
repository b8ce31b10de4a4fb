"""The model's dimensions: everything the arithmetic needs to know besides the weights.

Owns :class:`ModelShape` and its JSON form. ``store.families`` fills it from a published config,
the manifest keeps it, ``model`` computes with it; this is why it lies below both.

Invariant: a shape that :func:`parse` or a constructor lets through is consistent; a value whose
meaning is not known is refused, never ignored.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from flashmoe.errors import InputError

Mixer: TypeAlias = Literal["attention", "recurrent"]

LIMIT = 1 << 24
"""No dimension of a real model reaches this; a larger one is a damaged or hostile file."""


def _positive(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if type(value) is not int or not 0 < value <= LIMIT:
            raise InputError(f"{name} is {value!r}; it must be an integer from 1 to {LIMIT}")


@dataclass(frozen=True)
class AttentionShape:
    """Grouped-query softmax attention.

    ``rope_dims`` leading dimensions of each head are rotated in halves (pairs i, i + dims/2);
    ``gated`` doubles q_proj's rows, per head first query then gate; ``qk_norm`` normalises each
    query and key head before the rotation.
    """

    heads: int
    kv_heads: int
    head_dim: int
    rope_dims: int
    rope_theta: float
    gated: bool
    qk_norm: bool

    def __post_init__(self) -> None:
        _positive(self, "heads", "kv_heads", "head_dim", "rope_dims")
        if self.heads % self.kv_heads:
            raise InputError(f"{self.heads} heads do not divide over {self.kv_heads} kv_heads")
        if self.rope_dims > self.head_dim or self.rope_dims % 2:
            raise InputError(f"rope_dims {self.rope_dims} does not fit head_dim {self.head_dim}")
        if not 1.0 < self.rope_theta < 1e12:
            raise InputError(f"rope_theta is {self.rope_theta}; it must lie between 1 and 1e12")


@dataclass(frozen=True)
class RecurrentShape:
    """Gated delta net: ``value_heads`` states of (key_dim, value_dim), after a causal conv."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    conv_kernel: int

    def __post_init__(self) -> None:
        names = ("key_heads", "value_heads", "key_dim", "value_dim", "conv_kernel")
        _positive(self, *names)
        if self.value_heads % self.key_heads:
            raise InputError(
                f"{self.value_heads} value_heads do not divide over {self.key_heads} key_heads"
            )

    @property
    def conv_channels(self) -> int:
        """Channels of the causal convolution: queries, keys and values side by side."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim


@dataclass(frozen=True)
class ExpertsShape:
    """The streamed feed-forward part: ``count`` SwiGLU experts of ``intermediate`` width.

    ``router`` "softmax" picks ``top_k`` of them a token and divides the weights by their sum
    where ``renormalize``; "all" has no router: the experts are slices of one dense feed-forward
    network, always active with weight 1. ``shared_intermediate`` 0 means no shared expert.
    """

    count: int
    top_k: int
    intermediate: int
    router: Literal["softmax", "all"]
    renormalize: bool
    shared_intermediate: int

    def __post_init__(self) -> None:
        _positive(self, "count", "top_k", "intermediate")
        if self.top_k > self.count:
            raise InputError(f"top_k {self.top_k} exceeds the {self.count} experts")
        if self.router not in ("softmax", "all"):
            raise InputError(f"router {self.router!r} is not known")
        if self.router == "all" and self.top_k != self.count:
            raise InputError(f"slices are always active: top_k must be {self.count}")
        if not 0 <= self.shared_intermediate <= LIMIT:
            raise InputError(f"shared_intermediate is {self.shared_intermediate}")


@dataclass(frozen=True)
class ModelShape:
    """A decoder: embedding, ``len(mixers)`` layers of mixer and experts, norm, head.

    ``norm_offset`` 1 means that norms multiply by ``1 + w`` (as Qwen3.5 publishes them), 0 by
    ``w``. ``tied_head`` uses the embedding as output head. ``max_context_tokens`` is the
    checkpoint's own limit.
    """

    family: str
    hidden: int
    vocabulary: int
    mixers: tuple[Mixer, ...]
    attention: AttentionShape | None
    recurrent: RecurrentShape | None
    experts: ExpertsShape
    norm_eps: float
    norm_offset: int
    tied_head: bool
    max_context_tokens: int

    def __post_init__(self) -> None:
        _positive(self, "hidden", "vocabulary", "max_context_tokens")
        if not 0 < len(self.mixers) <= 4096:
            raise InputError(f"{len(self.mixers)} layers; a model has from 1 to 4096")
        for kind, part in (("attention", self.attention), ("recurrent", self.recurrent)):
            if (kind in self.mixers) != (part is not None):
                raise InputError(f"the layers and the {kind} dimensions do not agree")
        if not set(self.mixers) <= {"attention", "recurrent"}:
            raise InputError(f"layer kinds {sorted(set(self.mixers))} are not all known")
        if not 0 < self.norm_eps < 1:
            raise InputError(f"norm_eps is {self.norm_eps}; it must lie between 0 and 1")
        if self.norm_offset not in (0, 1):
            raise InputError(f"norm_offset is {self.norm_offset}; it must be 0 or 1")

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(self.mixers)


def describe(shape: ModelShape) -> dict[str, Any]:
    """The shape as a JSON object; inverse of :func:`parse`."""
    return {**asdict(shape), "mixers": list(shape.mixers)}


def parse(description: object) -> ModelShape:
    """Read a shape back from its JSON object.

    Raises:
        InputError: a field is missing, unknown, or of a value that is not allowed.
    """
    if not isinstance(description, dict):
        raise InputError("the model shape is not a JSON object")
    fields = dict(description)
    try:
        fields["mixers"] = tuple(fields["mixers"])
        fields["experts"] = ExpertsShape(**fields["experts"])
        if fields["attention"] is not None:
            fields["attention"] = AttentionShape(**fields["attention"])
        if fields["recurrent"] is not None:
            fields["recurrent"] = RecurrentShape(**fields["recurrent"])
        return ModelShape(**fields)
    except (TypeError, KeyError) as error:
        raise InputError(f"the model shape is malformed: {error}") from error
