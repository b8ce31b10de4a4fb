"""The comparison of test_parity can fail: each plausible mistake in the maths shows in it.

Owns the mistakes. Each replaces one function of the model or of its kernels by one that is wrong
on purpose; the logits must then differ by far more than parity allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from flashmoe import kernels
from flashmoe.kernels import mixers, reference
from flashmoe.model import attention, recurrent, trunk
from flashmoe.quant import Array, Expert
from tests.oracle import tiny
from tests.oracle.test_parity import TOKENS, Checked, check
from tests.tolerances import MUTANT, PARITY

pytestmark = pytest.mark.oracle

Patch: TypeAlias = pytest.MonkeyPatch
NAMES = ("qwen3_5_moe-fused", "qwen3_moe-unnormalised-tied", "mixtral-plain")


def _kernels(patch: Patch, **wrong: Any) -> None:
    """Put wrong functions into the table of kernels that the engine chooses."""
    choose = kernels.choose
    patch.setattr(kernels, "choose", lambda *given: replace(choose(*given), **wrong))


def _mixers(patch: Patch, **wrong: Any) -> None:
    """Put wrong steps into the mixers."""
    for name, function in wrong.items():
        patch.setattr(mixers, name, function)


def _permuted_rows(patch: Patch, name: str, order: Callable[[Any], Array]) -> None:
    """Permute the rows of one of the attention's projections."""
    made = attention.Attention.__init__
    at = ("q_proj", "k_proj", "v_proj").index(name)

    def permuted(self: Any, *given: Any) -> None:
        made(self, *given)
        inputs = list(self.block.inputs)
        inputs[at] = inputs[at].rows(order(self.shape))
        self.block = replace(self.block, inputs=tuple(inputs))

    patch.setattr(attention.Attention, "__init__", permuted)


def norms_without_one(patch: Patch) -> None:
    """w for 1 + w."""
    right = trunk.Trunk.norm
    patch.setattr(trunk.Trunk, "norm", lambda self, name, width, _: right(self, name, width, 0))


def gated_norm_with_one(patch: Patch) -> None:
    """1 + w in the norm of the delta net's output."""
    right = trunk.Trunk.norm

    def norm(self: trunk.Trunk, name: str, width: int, offset: int) -> Array:
        return right(self, name, width, 1 if name.endswith("linear_attn.norm") else offset)

    patch.setattr(trunk.Trunk, "norm", norm)


def norm_without_eps(patch: Patch) -> None:
    """The root of the mean alone."""
    wrong = {"rms_norm": lambda x, weight, eps: reference.rms_norm(x, weight, 0.0)}
    _kernels(patch, **wrong)
    _mixers(patch, **wrong)


def l2_eps_on_the_mean(patch: Patch) -> None:
    """1e-6 on the mean of the squares instead of their sum."""

    def l2_norm(x: Array) -> Array:
        return reference.rms_norm(x, x.dtype.type(x.shape[-1] ** -0.5), 1e-6)

    _mixers(patch, l2_norm=l2_norm)


def l2_largest_of_norm_and_eps(patch: Patch) -> None:
    """The root of the sum, or 1e-6 where that is larger."""

    def l2_norm(x: Array) -> Array:
        norm: Array = np.linalg.norm(x, axis=-1, keepdims=True)
        return x / np.maximum(norm, 1e-6)

    _mixers(patch, l2_norm=l2_norm)


def interleaved_rotary(patch: Patch) -> None:
    """Pairs (2i, 2i + 1) instead of (i, i + dims / 2)."""

    def rotary(x: Array, start: int, dims: int, theta: float) -> Array:
        order = np.arange(dims).reshape(-1, 2).T.ravel()
        y = x.copy()
        y[..., order] = reference.rotary(x[..., order], start, dims, theta)
        return y

    _mixers(patch, rotary=rotary)


def no_rotary(patch: Patch) -> None:
    """Positions are not seen by the attention."""
    _mixers(patch, rotary=lambda x, *_: x)


def rotary_on_all_dims(patch: Patch) -> None:
    """The whole head is rotated where only a part should be."""
    _mixers(patch, rotary=lambda x, at, _, theta: reference.rotary(x, at, x.shape[-1], theta))


def rotary_one_late(patch: Patch) -> None:
    """Keys and queries of a call stand one position further than those before."""

    def rotary(x: Array, start: int, dims: int, theta: float) -> Array:
        return reference.rotary(x, start + (start > 0), dims, theta)

    _mixers(patch, rotary=rotary)


def tiled_query_heads(patch: Patch) -> None:
    """Query head h reads kv head h % kv_heads."""

    def tiled(q: Array, keys: Array, values: Array) -> Array:
        heads, kv_heads = q.shape[1], len(keys)
        order = np.arange(heads).reshape(-1, kv_heads).T.ravel()
        y = np.empty_like(q)
        y[:, order] = reference.attention(q[:, order], keys, values)
        return y

    _mixers(patch, attention=tiled)


def attention_unscaled(patch: Patch) -> None:
    """Scores without head_dim ** -0.5."""
    _mixers(patch, attention=lambda q, k, v: reference.attention(q * q.shape[-1] ** 0.5, k, v))


def query_and_gate_in_halves(patch: Patch) -> None:
    """All queries first and then all gates, instead of head by head."""

    def order(shape: Any) -> Array:
        return np.arange(2 * shape.heads * shape.head_dim).reshape(
            2, shape.heads, shape.head_dim
        ).swapaxes(0, 1).ravel()  # fmt: skip

    _permuted_rows(patch, "q_proj", order)


def gate_before_query(patch: Patch) -> None:
    """The first half of a head is its gate."""

    def order(shape: Any) -> Array:
        rows = np.arange(2 * shape.heads * shape.head_dim)
        return rows.reshape(shape.heads, 2, shape.head_dim)[:, ::-1].ravel()

    _permuted_rows(patch, "q_proj", order)


def ungated_attention(patch: Patch) -> None:
    """The output without its gate."""
    _mixers(patch, sigmoid=np.ones_like)


def _split(patch: Patch, change: Callable[[Any, Array, Array], tuple[Array, Array]]) -> None:
    right = mixers.split

    def split(mixed: Array, shape: Any) -> tuple[Array, Array, Array]:
        q, k, v = right(mixed, shape)
        return *change(shape, q, k), v

    _mixers(patch, split=split)


def tiled_key_heads(patch: Patch) -> None:
    """Value head h reads key head h % key_heads."""

    def tile(shape: Any, q: Array, k: Array) -> tuple[Array, Array]:
        repeat = shape.value_heads // shape.key_heads
        order = np.tile(np.arange(shape.key_heads) * repeat, repeat)
        return q[:, order], k[:, order]

    _split(patch, tile)


def delta_query_unscaled(patch: Patch) -> None:
    """Queries without key_dim ** -0.5."""
    _split(patch, lambda shape, q, k: (q * shape.key_dim**0.5, k))


def delta_key_scaled(patch: Patch) -> None:
    """Keys with the queries' key_dim ** -0.5."""
    _split(patch, lambda shape, q, k: (q, k * shape.key_dim**-0.5))


def _numpy(patch: Patch, module: Any, **wrong: Callable[..., Any]) -> None:
    patch.setattr(module, "np", SimpleNamespace(**(vars(np) | wrong)))


def softplus_dropped(patch: Patch) -> None:
    """The step is a + dt_bias itself."""
    _numpy(patch, mixers, logaddexp=lambda x, _: np.abs(x))


def decay_not_exponential(patch: Patch) -> None:
    """A_log taken for A."""
    _numpy(patch, recurrent, exp=lambda x: x)


def beta_without_sigmoid(patch: Patch) -> None:
    """The write strength is always one."""
    _mixers(patch, sigmoid=np.ones_like)


def delta_gate_sigmoid(patch: Patch) -> None:
    """The output gate is a sigmoid instead of silu."""
    _mixers(patch, silu=reference.sigmoid)


def no_correction(patch: Patch) -> None:
    """Plain decayed linear attention: what the state recalls is not taken off."""

    def delta_rule(q: Array, k: Array, v: Array, decay: Array, beta: Array, s: Array) -> Any:
        rows = []
        for t in range(len(q)):
            s = s * np.exp(decay[t])[:, None, None]
            s = s + k[t][:, :, None] * (beta[t][:, None] * v[t])[:, None, :]
            rows.append(np.einsum("hkv,hk->hv", s, q[t]))
        return np.stack(rows), s

    _mixers(patch, delta_rule=delta_rule)


def decay_after_writing(patch: Patch) -> None:
    """The token is written before the state decays."""

    def delta_rule(q: Array, k: Array, v: Array, decay: Array, beta: Array, s: Array) -> Any:
        rows = []
        for t in range(len(q)):
            _, s = reference.delta_step(q[t], k[t], v[t], 0 * decay[t], beta[t], s)
            s = s * np.exp(decay[t])[:, None, None]
            rows.append(np.einsum("hkv,hk->hv", s, q[t]))
        return np.stack(rows), s

    _mixers(patch, delta_rule=delta_rule)


def conv_reversed(patch: Patch) -> None:
    """The first tap meets the current token."""
    _mixers(
        patch,
        causal_conv=lambda x, state, w: reference.causal_conv(x, state, w[:, ::-1]),
    )


def conv_state_after_silu(patch: Patch) -> None:
    """The next call sees the convolution's output where its input belongs."""

    def causal_conv(x: Array, state: Array, weight: Array) -> tuple[Array, Array]:
        y, state = reference.causal_conv(x, state, weight)
        return y, np.concatenate([state * 0, y])[-len(state) :]

    _mixers(patch, causal_conv=causal_conv)


def state_forgotten(patch: Patch) -> None:
    """A call begins with an empty recurrent state."""

    def delta_rule(q: Array, k: Array, v: Array, decay: Array, beta: Array, s: Array) -> Any:
        return reference.delta_rule(q, k, v, decay, beta, 0 * s)

    _mixers(patch, delta_rule=delta_rule)


def router_not_renormalized(patch: Patch) -> None:
    """The chosen weights keep their probabilities; where they should, they are renormalised."""
    _kernels(patch, route=lambda logits, k, renorm: reference.route(logits, k, not renorm))


def router_before_softmax(patch: Patch) -> None:
    """The raw logits of the chosen experts are their weights."""

    def route(logits: Array, top_k: int, renormalize: bool) -> tuple[Array, Array]:
        ids, _ = reference.route(logits, top_k, renormalize)
        return ids, np.take_along_axis(logits, ids, axis=-1)

    _kernels(patch, route=route)


def one_expert_less(patch: Patch) -> None:
    """The last of the top-k is left out."""

    def route(logits: Array, top_k: int, renorm: bool) -> tuple[Array, Array]:
        ids, weights = reference.route(logits, top_k, renorm)
        weights[:, -1] = 0
        return ids, weights

    _kernels(patch, route=route)


def shared_expert_ungated(patch: Patch) -> None:
    """The shared expert counts in full."""
    _kernels(patch, swiglu=lambda x, expert, gate: reference.swiglu(x, expert))


def gate_and_up_exchanged(patch: Patch) -> None:
    """silu on the wrong one of the two."""

    def experts(x: Array, ids: Array, weights: Array, held: Any) -> Array:
        swapped = ((n, Expert(e.up, e.gate, e.down)) for n, e in held)
        return reference.experts(x, ids, weights, swapped)

    _kernels(patch, experts=experts)


Mistake: TypeAlias = Callable[[Patch], None]
ATTENTION: tuple[Mistake, ...] = (
    norm_without_eps,
    interleaved_rotary,
    no_rotary,
    rotary_one_late,
    attention_unscaled,
)
EXPERTS: tuple[Mistake, ...] = (
    router_not_renormalized,
    router_before_softmax,
    one_expert_less,
    gate_and_up_exchanged,
)
HYBRID: tuple[Mistake, ...] = (
    norms_without_one,
    gated_norm_with_one,
    l2_eps_on_the_mean,
    l2_largest_of_norm_and_eps,
    rotary_on_all_dims,
    tiled_query_heads,
    query_and_gate_in_halves,
    gate_before_query,
    ungated_attention,
    tiled_key_heads,
    delta_query_unscaled,
    delta_key_scaled,
    softplus_dropped,
    decay_not_exponential,
    beta_without_sigmoid,
    delta_gate_sigmoid,
    no_correction,
    decay_after_writing,
    conv_reversed,
    conv_state_after_silu,
    state_forgotten,
    shared_expert_ungated,
)
PAIRS = (
    *((NAMES[0], mistake) for mistake in (*HYBRID, *ATTENTION, *EXPERTS)),
    *((NAMES[1], mistake) for mistake in (*ATTENTION, *EXPERTS)),
    *((NAMES[2], mistake) for mistake in (tiled_query_heads, *ATTENTION, *EXPERTS)),
)


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checked]:
    cases = {case.id: case for case in tiny.CASES}
    return {name: check(cases[name], tmp_path_factory.mktemp("mutants")) for name in NAMES}


@pytest.fixture
def patch() -> Iterator[Patch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def _difference(checked: Checked) -> float:
    """Two pieces, so that what is carried from one to the next counts; a NaN is a difference."""
    with np.errstate(all="ignore"):
        difference = checked.difference(TOKENS, (TOKENS - 50, 50))
    return np.inf if np.isnan(difference) else difference


@pytest.mark.parametrize("name", NAMES)
def test_without_a_mistake_there_is_parity(name: str, checked: dict[str, Checked]) -> None:
    assert _difference(checked[name]) <= PARITY


@pytest.mark.parametrize(
    ("name", "mistake"), PAIRS, ids=lambda part: part if isinstance(part, str) else part.__name__
)
def test_a_mistake_shows(
    name: str,
    mistake: Mistake,
    checked: dict[str, Checked],
    patch: Patch,
    record_property: Callable[[str, object], None],
) -> None:
    mistake(patch)
    difference = _difference(checked[name])
    record_property("max_abs_difference", difference)
    assert difference > MUTANT
