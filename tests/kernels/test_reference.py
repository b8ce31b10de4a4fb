"""The numpy kernels against the formulas of the specification, written out naively."""

import tracemalloc

import numpy as np
import pytest

from flashmoe import quant
from flashmoe.kernels import reference
from flashmoe.quant import Affine, Expert, Matrix, Plain

EXACT = 1e-12  # float64 against a float64 loop: only the order of sums differs


def plain(array):
    array = np.asarray(array, np.float32)
    return Matrix(Plain("F32"), array.shape, array)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def test_matmul_in_blocks_equals_the_whole_product(rng, monkeypatch):
    stored = quant.quantize(rng.standard_normal((70, 64)).astype(np.float32), Affine(4, 32))
    x = rng.standard_normal((3, 64))
    whole = x @ quant.dequantize(stored).astype(np.float64).T
    monkeypatch.setattr(reference, "BLOCK_ELEMENTS", 64 * 9)
    np.testing.assert_allclose(reference.matmul(x, stored), whole, rtol=0, atol=EXACT)


@pytest.mark.parametrize("form", [Affine(4, 32), Affine(8, 128), Affine(6, 64), Plain("BF16")])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_matmul_holds_no_more_than_its_block(rng, form, dtype):
    rows, columns = 8192, 1024  # four blocks
    arrays = {
        part.suffix: np.ones(part.shape, part.numpy_dtype)
        for part in quant.parts(form, (rows, columns))
    }
    stored = quant.matrix(form, (rows, columns), arrays)
    x = np.ones((2, columns), dtype)
    results = 2 * x.itemsize * 2 * rows  # the product, and the part that is copied into it
    tracemalloc.start()
    try:
        reference.matmul(x, stored)
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    block = reference.block_bytes(np.dtype(dtype))
    assert 0.75 * block < taken <= block + results


def test_rms_norm(rng):
    x, w = rng.standard_normal((2, 3, 8)), rng.standard_normal(8)
    got = reference.rms_norm(x, w, 1e-6)
    for i in range(2):
        for j in range(3):
            row = x[i, j]
            wanted = row / np.sqrt((row**2).sum() / 8 + 1e-6) * w
            np.testing.assert_allclose(got[i, j], wanted, rtol=0, atol=EXACT)


def test_rotary_turns_pairs_half_a_width_apart_and_leaves_the_rest(rng):
    x = rng.standard_normal((2, 1, 12))
    got = reference.rotary(x, start=5, dims=8, theta=100.0)
    for t in range(2):
        for i in range(4):
            angle = (5 + t) * 100.0 ** (-2 * i / 8)
            turned = (x[t, 0, i] + 1j * x[t, 0, i + 4]) * np.exp(1j * angle)
            assert abs(got[t, 0, i] - turned.real) < EXACT
            assert abs(got[t, 0, i + 4] - turned.imag) < EXACT
    np.testing.assert_array_equal(got[..., 8:], x[..., 8:])


@pytest.mark.parametrize("score_bytes", (1 << 20, 1))
@pytest.mark.parametrize(("count", "length"), [(3, 8), (8, 8), (2, 256), (5, 258), (3, 700)])
def test_attention_is_causal_and_grouped(rng, monkeypatch, score_bytes, count, length):
    monkeypatch.setattr(reference, "SCORE_BYTES", score_bytes)
    heads, kv_heads, width = 6, 2, 4
    q = rng.standard_normal((count, heads, width))
    keys = rng.standard_normal((kv_heads, length, width))
    values = rng.standard_normal((kv_heads, length, width))
    got = reference.attention(q, keys, values)
    for t in range(count):
        for h in range(heads):
            seen = length - count + t + 1
            k, v = keys[h // 3, :seen], values[h // 3, :seen]
            weight = np.exp(k @ q[t, h] / 2.0)
            wanted = (weight / weight.sum()) @ v
            np.testing.assert_allclose(got[t, h], wanted, rtol=0, atol=EXACT)


def test_causal_conv_in_pieces_equals_the_whole(rng):
    x, weight = rng.standard_normal((9, 5)), rng.standard_normal((5, 4))
    zeros = np.zeros((3, 5))
    whole, end = reference.causal_conv(x, zeros, weight)
    padded = np.concatenate([zeros, x])
    for t in range(9):
        total = sum(weight[:, j] * padded[t + j] for j in range(4))
        np.testing.assert_allclose(whole[t], total / (1 + np.exp(-total)), rtol=0, atol=EXACT)
    state, pieces = zeros, []
    for start, stop in ((0, 1), (1, 3), (3, 9)):
        y, state = reference.causal_conv(x[start:stop], state, weight)
        pieces.append(y)
    np.testing.assert_allclose(np.concatenate(pieces), whole, rtol=0, atol=EXACT)
    np.testing.assert_array_equal(state, end)


def delta_inputs(rng, count, heads=3, dk=8, dv=6):
    q = reference.l2_norm(rng.standard_normal((count, heads, dk))) * dk**-0.5
    k = reference.l2_norm(rng.standard_normal((count, heads, dk)))
    v = rng.standard_normal((count, heads, dv))
    log_decay = -rng.exponential(0.3, (count, heads))
    beta = rng.uniform(0, 1, (count, heads))
    return q, k, v, log_decay, beta, rng.standard_normal((heads, dk, dv))


def test_one_delta_step_follows_the_formula(rng):
    q, k, v, g, beta, state = delta_inputs(rng, 1)
    o, after = reference.delta_rule(q, k, v, g, beta, state)
    for h in range(3):
        s = np.exp(g[0, h]) * state[h]
        d = beta[0, h] * (v[0, h] - s.T @ k[0, h])
        s = s + np.outer(k[0, h], d)
        np.testing.assert_allclose(after[h], s, rtol=0, atol=EXACT)
        np.testing.assert_allclose(o[0, h], s.T @ q[0, h], rtol=0, atol=EXACT)


@pytest.mark.parametrize("count", (2, 63, 64, 65, 130))
def test_the_chunked_delta_rule_equals_the_recurrent_one(rng, count):
    q, k, v, g, beta, state = delta_inputs(rng, count)
    chunked, end = reference.delta_rule(q, k, v, g, beta, state)
    steps = []
    for t in range(count):
        o, state = reference.delta_step(q[t], k[t], v[t], g[t], beta[t], state)
        steps.append(o)
    np.testing.assert_allclose(chunked, np.stack(steps), rtol=0, atol=1e-11)
    np.testing.assert_allclose(end, state, rtol=0, atol=1e-11)


def test_a_strong_decay_does_not_overflow(rng):
    q, k, v, g, beta, state = delta_inputs(rng, 64)
    o, end = reference.delta_rule(q, k, v, g - 200.0, beta, state)
    assert np.isfinite(o).all() and np.isfinite(end).all()


def test_route_is_best_first_with_ties_to_the_lower_id():
    logits = np.log(np.array([[0.1, 0.3, 0.2, 0.3, 0.1]]))
    ids, weights = reference.route(logits, 3, renormalize=False)
    assert ids.tolist() == [[1, 3, 2]]
    np.testing.assert_allclose(weights, [[0.3, 0.3, 0.2]], rtol=0, atol=EXACT)
    _, weights = reference.route(logits, 3, renormalize=True)
    np.testing.assert_allclose(weights, [[0.375, 0.375, 0.25]], rtol=0, atol=EXACT)


def test_experts_of_one_token_do_not_depend_on_the_order_of_arrival(rng):
    made = {
        e: Expert(*(plain(rng.standard_normal(s)) for s in ((5, 4), (5, 4), (4, 5))))
        for e in range(6)
    }
    x = rng.standard_normal((7, 4)).astype(np.float32)
    ids = np.argsort(rng.random((7, 6)), axis=1)[:, :3]
    weights = rng.random((7, 3)).astype(np.float32)
    distinct = sorted(set(ids.ravel().tolist()))
    held = [(e, made[e]) for e in distinct]
    one = reference.experts(x, ids, weights, held)
    for t in range(7):
        alone = x[t : t + 1], ids[t : t + 1], weights[t : t + 1]
        some = [(e, made[e]) for e in ids[t].tolist()]
        given = reference.experts(*alone, some)
        np.testing.assert_array_equal(given, reference.experts(*alone, some[::-1]))
        np.testing.assert_allclose(given[0], one[t], rtol=0, atol=1e-5)
        wanted = np.zeros(4)
        for e, weight in zip(ids[t], weights[t], strict=True):
            gate, up, down = (m.weight.astype(np.float64) for m in vars_of(made[e]))
            a = gate @ x[t]
            wanted += weight * (down @ (a / (1 + np.exp(-a)) * (up @ x[t])))
        np.testing.assert_allclose(one[t], wanted, rtol=0, atol=1e-4)


def vars_of(expert):
    return expert.gate, expert.up, expert.down


def test_sigmoid_of_extremes_is_exact_and_silent():
    with np.errstate(all="raise", under="ignore"):
        got = reference.sigmoid(np.array([-1e4, 0.0, 1e4], np.float32))
    assert got.tolist() == [0.0, 0.5, 1.0] and got.dtype == np.float32
