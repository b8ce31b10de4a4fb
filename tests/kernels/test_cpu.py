"""The native kernels against the reference, through the door that the model uses."""

import numpy as np
import pytest

from flashmoe import _native, kernels, quant
from flashmoe.errors import InputError
from flashmoe.kernels import cpu, reference
from flashmoe.quant import AFFINE_BITS, FLOATS, Affine, Expert, Matrix, Plain
from flashmoe.stream.memory import resident_bytes
from tests.tolerances import PANEL

RELATIVE = 1e-5  # float32 sums of some hundred terms, in another order

FORMS = [Affine(bits, group) for bits in AFFINE_BITS for group in (32, 64, 128)]
FORMS += [Affine(4, 64, "F16"), Affine(8, 32, "F32"), *(Plain(name) for name in FLOATS)]


def stored(rng, form, rows, columns):
    weights = rng.standard_normal((rows, columns)).astype(np.float32)
    if isinstance(form, Affine):
        return quant.quantize(weights, form)
    return Matrix(form, weights.shape, weights.astype(FLOATS[form.dtype]))


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("tokens", (1, 3, 8))
def test_matmul(form, tokens):
    rng = np.random.default_rng(3)
    weights = stored(rng, form, 37, 256)
    x = rng.standard_normal((tokens, 256)).astype(np.float32)
    wanted = reference.matmul(x.astype(np.float64), weights)
    got = kernels.choose("cpu", "float32", 2).matmul(x, weights)
    assert got.dtype == np.float32
    assert np.abs(got - wanted).max() <= RELATIVE * np.abs(wanted).max()


@pytest.mark.parametrize("form", [Affine(4, 64), Plain("BF16")], ids=str)
def test_threads_do_not_change_a_bit(form):
    rng = np.random.default_rng(4)
    weights, x = stored(rng, form, 101, 128), rng.standard_normal((5, 128)).astype(np.float32)
    one = kernels.choose("cpu", "float32", 1).matmul(x, weights)
    for threads in (2, 3, 7):
        again = kernels.choose("cpu", "float32", threads).matmul(x, weights)
        np.testing.assert_array_equal(one, again)


def test_views_and_strided_activations_are_taken():
    rng = np.random.default_rng(5)
    weights = stored(rng, Affine(4, 32), 16, 128).columns(32, 96)
    x = rng.standard_normal((64, 6)).astype(np.float32).T
    got = kernels.choose("cpu", "float32", 2).matmul(x, weights)
    np.testing.assert_allclose(got, reference.matmul(x, weights), rtol=0, atol=1e-4)


def test_activations_that_do_not_fit_are_refused_before_the_native_side():
    weights = stored(np.random.default_rng(6), Affine(4, 32), 16, 128)
    table = kernels.choose("cpu", "float32", 1)
    for x in (np.ones((1, 64), np.float32), np.ones((1, 128)), np.ones(128, np.float32)):
        with pytest.raises(ValueError, match="do not fit"):
            table.matmul(x, weights)


NETWORKS = {
    "4 bits": [Affine(4, 32)] * 3,
    "down wider": [Affine(3, 32), Affine(3, 32), Affine(6, 64)],
    "gate and up differ": [Affine(4, 64), Affine(4, 32), Affine(8, 32)],
    "plain gate": [Plain("BF16"), Affine(2, 64), Plain("F16")],
    "plain": [Plain("F32")] * 3,
}


def an_expert(rng, forms, hidden=192, width=128):
    shapes = ((width, hidden), (width, hidden), (hidden, width))
    return Expert(*(stored(rng, form, *shape) for form, shape in zip(forms, shapes, strict=True)))


def close(got, wanted):
    """Two products in a row, the second of float32 sums of the first; of many rows at once, or of
    one in the form for that."""
    bound = 2 * RELATIVE if len(got) == 1 else PANEL
    return np.abs(got - wanted).max() <= bound * np.abs(wanted).max()


@pytest.mark.parametrize("forms", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("tokens", (1, 5))
def test_swiglu(forms, tokens):
    rng = np.random.default_rng(8)
    expert, x = an_expert(rng, forms), rng.standard_normal((tokens, 192)).astype(np.float32)
    wanted = reference.swiglu(x.astype(np.float64), expert)
    got = kernels.choose("cpu", "float32", 2).swiglu(x, expert)
    assert got.dtype == np.float32 and close(got, wanted)
    for kind in _native.instruction_sets():
        _native.swiglu(x, cpu._expert(expert), None, got, 2, kind)
        assert close(got, wanted)


def test_neither_threads_nor_tokens_together_change_a_bit_of_an_expert():
    rng = np.random.default_rng(9)
    expert = an_expert(rng, [Affine(4, 64)] * 3, hidden=512, width=512)
    x = rng.standard_normal((5, 512)).astype(np.float32)
    one = kernels.choose("cpu", "float32", 1)
    together, single = one.swiglu(x, expert), one.swiglu(x[:1], expert)
    for threads in (2, 3, 7):
        table = kernels.choose("cpu", "float32", threads)
        np.testing.assert_array_equal(together, table.swiglu(x, expert))
        np.testing.assert_array_equal(single, table.swiglu(x[:1], expert))
        for first in (0, 1, 3):
            some = table.swiglu(x[first : first + 2], expert)
            np.testing.assert_array_equal(together[first : first + 2], some)


def test_large_gates_saturate():
    rng = np.random.default_rng(10)
    expert = an_expert(rng, [Plain("F32")] * 3)
    x = rng.standard_normal((2, 192)).astype(np.float32) * 100
    got = kernels.choose("cpu", "float32", 1).swiglu(x, expert)
    assert close(got, reference.swiglu(x.astype(np.float64), expert))


def test_experts_of_a_token_are_taken_as_they_arrive():
    rng = np.random.default_rng(11)
    many = [an_expert(rng, [Affine(4, 32)] * 3) for _ in range(4)]
    x = rng.standard_normal((1, 192)).astype(np.float32)
    ids = np.array([[2, 0, 3]])
    weights = rng.random((1, 3)).astype(np.float32)
    table = kernels.choose("cpu", "float32", 2)
    answers = [table.experts(x, ids, weights, ((i, many[i]) for i in order))
               for order in ((0, 1, 2, 3), (3, 1, 0, 2))]  # fmt: skip
    np.testing.assert_array_equal(*answers)
    wide = x.astype(np.float64), ids, weights.astype(np.float64)
    assert close(answers[0], reference.experts(*wide, list(enumerate(many))))


class Held:
    """Experts in an order; each of ``waiting`` comes only after those before it were used."""

    def __init__(self, many, order, waiting):
        self.order, self.many, self.waiting = order, many, waiting

    def batches(self):
        batch = []
        for number in self.order:
            if batch and number in self.waiting:
                yield batch
                batch = []
            batch.append((number, self.many[number]))
        yield batch


def some_experts(rng, tokens):
    """Experts of several formats, some wanted by several tokens, one by none."""
    many = [an_expert(rng, forms) for forms in NETWORKS.values() for _ in range(2)]
    x = rng.standard_normal((tokens, 192)).astype(np.float32)
    ids = np.stack([rng.permutation(9)[:4] for _ in range(tokens)])
    weights = rng.random(ids.shape).astype(np.float32)
    wide = x.astype(np.float64), ids, weights.astype(np.float64)
    return many, x, ids, weights, reference.experts(*wide, list(enumerate(many)))


def test_neither_arrival_nor_grouping_nor_threads_change_a_bit_of_a_token():
    rng = np.random.default_rng(13)
    many, x, ids, weights, wanted = some_experts(rng, 1)
    answers = []
    for threads in (1, 2, 3):
        table = kernels.choose("cpu", "float32", threads)
        for waiting in ((), range(10), (3, 4)):
            held = Held(many, rng.permutation(10).tolist(), waiting)
            answers.append(table.experts(x, ids, weights, held))
        outputs = np.zeros((ids.shape[1], 192), np.float32)
        handles = [cpu._expert(each) for each in many]
        _native.experts(x, ids.astype(np.int64), list(range(10)), handles, outputs, threads)
        np.testing.assert_array_equal(outputs[2:3], table.swiglu(x, many[ids[0, 2]]))
    for answer in answers:
        np.testing.assert_array_equal(answer, answers[0])
    assert close(answers[0], wanted)


def test_neither_grouping_nor_threads_nor_company_change_a_bit_of_many_tokens():
    rng = np.random.default_rng(17)
    many, x, ids, weights, wanted = some_experts(rng, 7)
    answers = []
    for threads in (1, 2, 3):
        table = kernels.choose("cpu", "float32", threads)
        for waiting in ((), range(10), (3, 4)):
            answers.append(table.experts(x, ids, weights, Held(many, range(10), waiting)))
        some = table.experts(x[2:4], ids[2:4], weights[2:4], Held(many, range(10), ()))
        np.testing.assert_array_equal(some, answers[0][2:4])
    for answer in answers:
        np.testing.assert_array_equal(answer, answers[0])
    assert close(answers[0], wanted)


@pytest.mark.parametrize("kind", _native.instruction_sets())
def test_products_of_one_input_are_those_of_each(kind):
    rng = np.random.default_rng(14)
    many = [
        stored(rng, form, rows, 256) for rows, form in zip(range(1, 99, 7), FORMS, strict=False)
    ]
    for tokens in (1, 3):
        x = rng.standard_normal((tokens, 256)).astype(np.float32)
        y = np.empty(tokens * sum(each.shape[0] for each in many), np.float32)
        _native.project(x, [cpu._matrix(each) for each in many], y, 2, kind)
        start = 0
        for each in many:
            alone = np.empty((tokens, each.shape[0]), np.float32)
            _native.project(x, [cpu._matrix(each)], alone, 1, kind)
            np.testing.assert_array_equal(y[start : start + alone.size], alone.ravel())
            wanted = reference.matmul(x.astype(np.float64), each)
            assert np.abs(alone - wanted).max() <= RELATIVE * np.abs(wanted).max()
            start += alone.size
    parts = kernels.choose("cpu", "float32", 2).project(x, many[:3])
    assert [part.shape for part in parts] == [(3, 1), (3, 8), (3, 15)]
    for part, each in zip(parts, many, strict=False):
        wanted = reference.matmul(x.astype(np.float64), each)
        assert np.abs(part - wanted).max() <= PANEL * np.abs(wanted).max()
    with pytest.raises(ValueError, match="room"):
        _native.project(x, [cpu._matrix(many[0])], y, 1, kind)


def test_the_gate_of_a_resident_expert_is_a_sigmoid():
    rng = np.random.default_rng(15)
    expert, x = an_expert(rng, [Affine(4, 32)] * 3), rng.standard_normal((3, 192), np.float32)
    gate = stored(rng, Affine(8, 32), 1, 192)
    table = kernels.choose("cpu", "float32", 2)
    got = table.swiglu(x, expert, gate)
    assert close(got, reference.swiglu(x.astype(np.float64), expert, gate))
    plain = table.swiglu(x, expert)
    apart = plain * reference.sigmoid(table.matmul(x, gate))
    assert close(got, apart) and not close(got, plain)
    with pytest.raises(ValueError, match="gate"):
        table.swiglu(x, expert, stored(rng, Affine(8, 32), 2, 192))


def test_a_handle_goes_with_its_matrix():
    weights = stored(np.random.default_rng(16), Affine(4, 32), 16, 128)
    before = len(cpu._matrix)
    assert cpu._matrix(weights) is cpu._matrix(weights)
    assert len(cpu._matrix) == before + 1
    del weights
    assert len(cpu._matrix) == before


def test_an_expert_that_does_not_fit_is_refused():
    rng = np.random.default_rng(12)
    good = an_expert(rng, [Affine(4, 32)] * 3)
    other = an_expert(rng, [Affine(4, 32)] * 3, width=64)
    x, table = np.ones((1, 192), np.float32), kernels.choose("cpu", "float32", 1)
    wrong = [Expert(good.gate, other.up, good.down), Expert(good.gate, good.up, other.down),
             Expert(good.gate, good.up, good.gate)]  # fmt: skip
    for expert in wrong:
        with pytest.raises(ValueError):
            table.swiglu(x, expert)
    with pytest.raises(ValueError, match="do not fit"):
        table.swiglu(x[:, :96], good)
    parts = cpu._parts(good.gate)
    with pytest.raises(TypeError):
        _native.Matrix((parts[0].view(np.int32), *parts[1:]), 192)
    with pytest.raises(ValueError):
        _native.Matrix(parts[:3], 192)


def test_the_table_is_chosen_by_name_and_dtype():
    assert kernels.choose("auto", "float32").name == "cpu"
    assert kernels.choose("auto", "float64").name == "reference"
    assert kernels.choose("reference", "float32").matmul is reference.matmul
    for name, dtype in (("cpu", "float64"), ("gpu", "float32"), ("auto", "float16")):
        with pytest.raises(InputError):
            kernels.choose(name, dtype)


def test_each_set_says_what_its_blocks_of_weights_take():
    float32, float64 = np.dtype(np.float32), np.dtype(np.float64)
    chosen = kernels.choose("reference", "float32", 64)
    assert chosen.block_bytes == reference.block_bytes(float32) == 10 << 20
    assert kernels.choose("reference", "float64").block_bytes == 24 << 20
    assert reference.block_bytes(float64) == 24 << 20
    row = cpu.ROW_BYTES
    assert kernels.choose("cpu", "float32", 3).block_bytes == 3 * row
    assert kernels.choose("cpu", "float32", 64).block_bytes == 64 * row < 16 << 20


def test_the_native_scratch_is_a_row_a_thread():
    """Resident memory, since the native side's allocations are not Python's."""
    threads, columns = 4, 32768
    weights = Matrix(Plain("F16"), (64, columns), np.ones((64, columns), np.float16))
    x = np.ones((1, columns), np.float32)
    product = kernels.choose("cpu", "float32", threads).matmul
    product(x[:, :32].copy(), Matrix(Plain("F16"), (64, 32), np.ones((64, 32), np.float16)))
    before = resident_bytes()
    for _ in range(3):
        product(x, weights)
    assert resident_bytes() - before <= threads * cpu.ROW_BYTES + (1 << 20)


def test_threads_default_to_the_processors_this_process_may_use(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 5, 7}, raising=False)
    assert kernels.choose("cpu", "float32").matmul.keywords["threads"] == 3
    assert kernels.choose("cpu", "float32", 2).matmul.keywords["threads"] == 2
    with pytest.raises(InputError, match="threads is 1025"):
        kernels.choose("cpu", "float32", 1025)
