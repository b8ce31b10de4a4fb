"""Records and headers: sizes from the specification, alignment, and the round trip."""

import json

import numpy as np
import pytest
import safetensors

from flashmoe import quant
from flashmoe.quant import Affine, Expert, Matrix, Plain
from flashmoe.store.layout import (
    ALIGNMENT,
    RecordLayout,
    TrunkTensor,
    layer_header,
    trunk_header,
)


def test_record_of_the_397b_model_at_4_and_2_bits():
    four = RecordLayout(*[Affine(4, 64)] * 3, hidden=4096, intermediate=1024)
    two = RecordLayout(*[Affine(2, 64)] * 3, hidden=4096, intermediate=1024)
    assert (four.nbytes, four.record_bytes) == (7_077_888, 7_077_888)
    assert (two.nbytes, two.record_bytes) == (3_932_160, 3_932_160)


def expert(rng, layout):
    def one(form, rows, columns):
        weights = rng.standard_normal((rows, columns)).astype(np.float32)
        if isinstance(form, Plain):
            return Matrix(form, weights.shape, weights.astype(quant.FLOATS[form.dtype]))
        return quant.quantize(weights, form)

    inward = (layout.intermediate, layout.hidden)
    return Expert(
        one(layout.gate, *inward), one(layout.up, *inward), one(layout.down, *inward[::-1])
    )


@pytest.mark.parametrize(
    "forms",
    [
        [Affine(4, 32)] * 3,
        [Affine(3, 32), Affine(3, 32), Affine(6, 64)],
        [Plain("BF16")] * 3,
        [Plain("F32"), Affine(2, 32, "F16"), Plain("F16")],
    ],
    ids=str,
)
def test_a_record_gives_back_the_expert(forms):
    layout = RecordLayout(*forms, hidden=96, intermediate=64)
    made = expert(np.random.default_rng(0), layout)
    record = layout.encode(made)
    assert len(record) == layout.record_bytes and len(record) % ALIGNMENT == 0
    assert not record[layout.nbytes :].any()
    back = layout.expert(record)
    for one, other in ((made.gate, back.gate), (made.up, back.up), (made.down, back.down)):
        assert one.form == other.form and one.shape == other.shape
        for a, b in zip(one.arrays(), other.arrays(), strict=True):
            np.testing.assert_array_equal(a, b)
            assert b.base is not None  # a view: nothing was copied


def test_encode_refuses_an_expert_of_another_layout():
    rng = np.random.default_rng(0)
    small = RecordLayout(*[Affine(4, 32)] * 3, hidden=32, intermediate=32)
    large = RecordLayout(*[Affine(4, 32)] * 3, hidden=64, intermediate=32)
    with pytest.raises(ValueError, match="gate_proj"):
        large.encode(expert(rng, small))


def test_a_layer_file_opens_with_the_safetensors_library():
    layout = RecordLayout(*[Affine(4, 32)] * 3, hidden=96, intermediate=64)
    rng = np.random.default_rng(1)
    made = [expert(rng, layout) for _ in range(3)]
    header = layer_header(layout, 3)
    assert len(header) % ALIGNMENT == 0
    content = header + b"".join(layout.encode(each).tobytes() for each in made)
    arrays = dict(safetensors.deserialize(content))
    raw = arrays["experts.2.down_proj.weight"]
    assert raw["dtype"] == "U32" and raw["shape"] == list(made[2].down.weight.shape)
    assert bytes(raw["data"]) == made[2].down.weight.tobytes()


def test_trunk_parts_are_aligned_to_their_own_size_and_named_as_mlx_names_them():
    tensors = [
        TrunkTensor("norm.weight", Plain("BF16"), (33,)),
        TrunkTensor("layers.0.linear_attn.A_log", Plain("F32"), (3,)),
        TrunkTensor("lm_head.weight", Affine(4, 32), (5, 64)),
    ]
    header, extents = trunk_header(tensors)
    names = {"norm.weight", "layers.0.linear_attn.A_log", "lm_head.weight"}
    assert set(extents) == names | {"lm_head.scales", "lm_head.biases"}
    assert all(
        extents[name][0] % part.numpy_dtype.itemsize == 0
        for tensor in tensors
        for name, part in tensor.named_parts()
    )
    table = json.loads(header[8:])
    assert table["lm_head.weight"]["dtype"] == "U32"
    end = max(offset + nbytes for offset, nbytes in extents.values())
    assert max(entry["data_offsets"][1] for entry in table.values()) == end - len(header)
