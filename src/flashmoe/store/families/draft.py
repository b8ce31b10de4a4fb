"""A recipe in the making: takes tensors out of a checkpoint, one by one, and checks each.

Owns the account of the checkpoint's tensors (taken, skipped with a reason, or unknown) and the
blocks that several families share: attention, norms, shared expert, routed experts in their three
published layouts.

Invariant: a finished draft has taken or skipped every tensor, each of exactly the shape that the
config asks for.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from flashmoe.errors import CheckpointError
from flashmoe.quant import Array, Format, Plain
from flashmoe.shape import AttentionShape, ExpertsShape, ModelShape
from flashmoe.store.checkpoint import Checkpoint
from flashmoe.store.recipe import LayerSource, ProjectionSource, Recipe, Role, TrunkSource

log = logging.getLogger("flashmoe.store.families")

BUFFERS = ("rotary_emb.inv_freq",)
"""Ends of names of tensors that older files carry although they follow from the config."""


@dataclass
class Draft:
    """``prefix`` stands before our names in the checkpoint; ``head`` is its output head."""

    checkpoint: Checkpoint
    prefix: str
    head: str = "lm_head.weight"
    trunk: list[TrunkSource] = field(default_factory=list)
    layers: list[LayerSource] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._left = dict.fromkeys(self.checkpoint.tensors)

    def has(self, name: str) -> bool:
        """Whether the checkpoint has our tensor ``name`` under the prefix."""
        return self.prefix + name in self.checkpoint.tensors

    def take(self, published: str, shape: tuple[int, ...]) -> Format:
        """The format of a tensor that must be there, of this shape.

        Raises:
            CheckpointError: it is missing, or of another shape.
        """
        if published not in self.checkpoint.tensors:
            raise CheckpointError(
                f"{self.checkpoint.path} has no tensor {published}, which its config asks for: "
                "the download is incomplete, or the config belongs to another model"
            )
        found = self.checkpoint.tensors[published]
        if found.shape != shape:
            raise CheckpointError(
                f"{self.checkpoint.path}: tensor {published} has shape {found.shape}, and its "
                f"config asks for {shape}: take the config that belongs to these weights"
            )
        self._left.pop(published, None)
        return found.form

    def matrix(
        self,
        name: str,
        rows: int,
        columns: int,
        *,
        source: str | None = None,
        published_rows: int | None = None,
        order: Array | None = None,
        role: Role = "matrix",
    ) -> None:
        """Add the trunk matrix ``name`` of (rows, columns).

        ``source`` is its published name where that is not the prefix and ours; it has
        ``published_rows`` rows, of which ``order`` picks ours.
        """
        published = self.prefix + name if source is None else source
        form = self.take(published, (published_rows or rows, columns))
        self.trunk.append(TrunkSource(name, published, form, (rows, columns), role, order))

    def vector(
        self,
        name: str,
        *shape: int,
        source: str | None = None,
        published_shape: tuple[int, ...] | None = None,
    ) -> None:
        """Add the trunk tensor ``name``, copied as published, apart from its shape."""
        published = self.prefix + name if source is None else source
        form = self.take(published, published_shape or shape)
        if not isinstance(form, Plain):
            raise CheckpointError(
                f"{self.checkpoint.path}: tensor {published} is quantised; norms and other vectors "
                "must be plain numbers: convert another file of this model"
            )
        self.trunk.append(TrunkSource(name, published, form, shape, "vector"))

    def skip(self, reason: str, *beginnings: str) -> None:
        """Leave out every tensor whose name begins so."""
        for name in [name for name in self._left if name.startswith(beginnings)]:
            del self._left[name]
            self.skipped[name] = reason

    def ends(self, vocabulary: int, hidden: int, *, tied: bool) -> None:
        """Add embedding, final norm and output head; a tied head's copy is skipped."""
        self.matrix("embed_tokens.weight", vocabulary, hidden)
        self.vector("norm.weight", hidden)
        if tied:
            self.skip("the head is tied to the embedding", self.head)
        else:
            self.matrix("lm_head.weight", vocabulary, hidden, source=self.head)

    def norms(self, layer: int, hidden: int) -> None:
        """Add the two norms of a layer."""
        for name in ("input_layernorm", "post_attention_layernorm"):
            self.vector(f"layers.{layer}.{name}.weight", hidden)

    def attention(self, layer: int, hidden: int, shape: AttentionShape) -> None:
        """Add grouped-query attention under ``self_attn``."""
        block = f"layers.{layer}.self_attn"
        width = shape.heads * shape.head_dim
        kv_width = shape.kv_heads * shape.head_dim
        self.matrix(f"{block}.q_proj.weight", width * (2 if shape.gated else 1), hidden)
        self.matrix(f"{block}.k_proj.weight", kv_width, hidden)
        self.matrix(f"{block}.v_proj.weight", kv_width, hidden)
        self.matrix(f"{block}.o_proj.weight", hidden, width)
        if shape.qk_norm:
            self.vector(f"{block}.q_norm.weight", shape.head_dim)
            self.vector(f"{block}.k_norm.weight", shape.head_dim)

    def shared_expert(self, layer: int, hidden: int, intermediate: int) -> None:
        """Add the gated shared expert."""
        block = f"layers.{layer}.mlp"
        self.matrix(f"{block}.shared_expert.gate_proj.weight", intermediate, hidden)
        self.matrix(f"{block}.shared_expert.up_proj.weight", intermediate, hidden)
        self.matrix(f"{block}.shared_expert.down_proj.weight", hidden, intermediate)
        self.matrix(f"{block}.shared_expert_gate.weight", 1, hidden, role="router")

    def routed_experts(
        self,
        layer: int,
        hidden: int,
        experts: ExpertsShape,
        *,
        block: str = "mlp",
        names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    ) -> None:
        """Add router and experts, in whichever layout they are: fused, stacked or one by one.

        ``block`` is where the layer publishes them; ``names`` are gate, up and down where they
        are one by one.
        """
        at = f"{self.prefix}layers.{layer}.{block}."
        self.matrix(
            f"layers.{layer}.mlp.gate.weight",
            experts.count,
            hidden,
            source=f"{at}gate.weight",
            role="router",
        )
        width = experts.intermediate
        if f"{at}experts.gate_up_proj" in self.checkpoint.tensors:
            source = self._fused(f"{at}experts.", experts.count, width, hidden)
        elif f"{at}switch_mlp.gate_proj.weight" in self.checkpoint.tensors:
            source = self._stacked(f"{at}switch_mlp.", experts.count, width, hidden)
        else:
            source = LayerSource(
                self._one_by_one(
                    f"{at}experts.{{}}.{names[0]}.weight", experts.count, width, hidden
                ),
                self._one_by_one(
                    f"{at}experts.{{}}.{names[1]}.weight", experts.count, width, hidden
                ),
                self._one_by_one(
                    f"{at}experts.{{}}.{names[2]}.weight", experts.count, hidden, width
                ),
            )
        self.layers.append(source)

    def _fused(self, at: str, count: int, width: int, hidden: int) -> LayerSource:
        """transformers: rows 0 to I-1 of each expert are gate, I to 2I-1 up; no ``.weight``."""
        both, down = f"{at}gate_up_proj", f"{at}down_proj"
        form = self.take(both, (count, 2 * width, hidden))
        return LayerSource(
            ProjectionSource(both, form, width, 0, 2 * width),
            ProjectionSource(both, form, width, width, 2 * width),
            ProjectionSource(down, self.take(down, (count, hidden, width)), hidden, 0, hidden),
        )

    def _stacked(self, at: str, count: int, width: int, hidden: int) -> LayerSource:
        """mlx-lm: one tensor a projection."""
        gate, up, down = (f"{at}{name}_proj.weight" for name in ("gate", "up", "down"))
        inward, outward = (count, width, hidden), (count, hidden, width)
        return LayerSource(
            ProjectionSource(gate, self.take(gate, inward), width, 0, width),
            ProjectionSource(up, self.take(up, inward), width, 0, width),
            ProjectionSource(down, self.take(down, outward), hidden, 0, hidden),
        )

    def _one_by_one(self, name: str, count: int, rows: int, columns: int) -> ProjectionSource:
        forms = [self.take(name.format(expert), (rows, columns)) for expert in range(count)]
        for expert, form in enumerate(forms):
            if form != forms[0]:
                raise CheckpointError(
                    f"{self.checkpoint.path}: tensor {name.format(expert)} is {form}, but that of "
                    f"expert 0 is {forms[0]}; the experts of a layer must agree"
                )
        return ProjectionSource(name, forms[0], rows)

    def finish(self, shape: ModelShape) -> Recipe:
        """The recipe, once every tensor is accounted for.

        Raises:
            CheckpointError: a tensor is neither taken nor skipped.
        """
        for name in [name for name in self._left if name.endswith(BUFFERS)]:
            del self._left[name]
            self.skipped[name] = "it follows from the config"
        if self._left:
            first = next(iter(self._left))
            others = f" (and {len(self._left) - 1} more)" if len(self._left) > 1 else ""
            raise CheckpointError(
                f"{self.checkpoint.path}: tensor {first}{others} is not part of the "
                f"{shape.family} that its config describes: leaving it out could change the "
                "answer; take the config that belongs to these weights"
            )
        for name, reason in self.skipped.items():
            log.info("skipped %s: %s", name, reason)
        return Recipe(shape, tuple(self.trunk), tuple(self.layers), dict(self.skipped))
