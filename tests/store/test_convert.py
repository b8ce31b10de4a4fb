"""Conversion: the right numbers under the right names, and a careful treatment of directories."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from safetensors import safe_open

from flashmoe.errors import CheckpointError, ConversionError, FlashMoeError, InputError, StoreError
from flashmoe.quant import Affine, Array, Matrix, Plain, dequantize, quantize
from flashmoe.store import conversion, workshop
from flashmoe.store.convert import Progress, convert
from flashmoe.store.journal import Journal
from flashmoe.store.layout import JOURNAL, MANIFEST, TRUNK
from flashmoe.store.reader import Store
from flashmoe.store.verify import verify
from tests import published as pub
from tests.published import FAMILIES, Published
from tests.republished import as_mlx, write_gguf


def contents(directory: Path) -> dict[str, bytes]:
    """Every file of a directory."""
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def made(published: Published, directory: Path, **options: Any) -> Store:
    """The store of a checkpoint, by way of files."""
    convert(published.write(directory / "published"), directory / "store", **options)
    return Store.open(directory / "store")


def experts_of(store: Store) -> dict[str, Matrix]:
    """Every routed expert's matrices, as ``LAYER.EXPERT.gate``."""
    found: dict[str, Matrix] = {}
    for layer in range(store.shape.layers):
        for number in range(store.shape.experts.count):
            at = store.record(layer, number)
            record = np.fromfile(at.path, np.uint8, at.nbytes, offset=at.offset)
            expert = store.layout(layer).expert(record)
            for name in ("gate", "up", "down"):
                found[f"{layer}.{number}.{name}"] = getattr(expert, name)
    return found


def same(found: Matrix, expected: Array) -> None:
    """The stored plain weights are these, bit for bit."""
    assert found.weight.dtype == expected.dtype
    assert found.weight.shape == expected.shape
    assert found.weight.tobytes() == np.ascontiguousarray(expected).tobytes()


def without_prefix(name: str) -> str:
    return name.removeprefix("model.").removeprefix("language_model.")


def routed(published: Published, layer: int, expert: int) -> tuple[Array, Array, Array]:
    """Gate, up and down of one expert in the published checkpoint."""
    prefix = "model.language_model" if "text_config" in published.config else "model"
    at = next(
        name.rsplit("experts.", 1)[0]
        for name in published.tensors
        if name.startswith(f"{prefix}.layers.{layer}.") and "experts." in name
    )
    tensors = published.tensors
    if f"{at}experts.gate_up_proj" in tensors:
        both = tensors[f"{at}experts.gate_up_proj"][expert]
        half = len(both) // 2
        return both[:half], both[half:], tensors[f"{at}experts.down_proj"][expert]
    names = ("w1", "w3", "w2") if "block_sparse" in at else ("gate_proj", "up_proj", "down_proj")
    gate, up, down = (tensors[f"{at}experts.{expert}.{name}.weight"] for name in names)
    return gate, up, down


SPARSE = [name for name in FAMILIES if name != "llama"]


@pytest.mark.parametrize("family", SPARSE)
@pytest.mark.parametrize("fused", [False, True])
def test_16_bits_keep_every_number(family: str, fused: bool, tmp_path: Path) -> None:
    source = FAMILIES[family](fused=fused)
    store = made(source, tmp_path, bits=16)
    trunk = store.trunk()
    for name, array in source.tensors.items():
        ours = without_prefix(name).replace("block_sparse_moe", "mlp")
        if "experts." in ours or "in_proj_qkvz" in ours or "in_proj_ba" in ours:
            continue
        if "visual" in ours or ours.startswith("mtp."):
            assert ours not in trunk
            continue
        same(trunk.pop(ours), array[:, 0] if "conv1d" in ours else array)
    left = [name for name in trunk if "in_proj_" not in name]
    assert not left
    for place, found in experts_of(store).items():
        layer, expert, name = place.split(".")
        wanted = routed(source, int(layer), int(expert))
        same(found, wanted[("gate", "up", "down").index(name)])


def test_qwen3_next_rows_go_where_they_belong(tmp_path: Path) -> None:
    """Against transformers' own reshaping: per key head [q, k, v, z] and [b, a]."""
    source = pub.qwen3_next()
    trunk = made(source, tmp_path, bits=16).trunk()
    for layer in range(3):
        block = f"layers.{layer}.linear_attn"
        groups = source.tensors[f"model.{block}.in_proj_qkvz.weight"].reshape(2, -1, 64)
        q, k, v, z = np.split(groups, [16, 32, 96], axis=1)
        flat = [part.reshape(-1, 64) for part in (q, k, v)]
        same(trunk[f"{block}.in_proj_qkv.weight"], np.concatenate(flat))
        same(trunk[f"{block}.in_proj_z.weight"], z.reshape(-1, 64))
        b, a = np.split(source.tensors[f"model.{block}.in_proj_ba.weight"].reshape(2, 4, 64), 2, 1)
        same(trunk[f"{block}.in_proj_b.weight"], b.reshape(-1, 64))
        same(trunk[f"{block}.in_proj_a.weight"], a.reshape(-1, 64))


def test_slices_add_up_to_the_dense_network(tmp_path: Path) -> None:
    source = pub.llama(dtype="F16")
    store = made(source, tmp_path, bits=16, slices=4)
    found = experts_of(store)
    for layer in range(3):
        at = f"model.layers.{layer}.mlp."
        for name, axis in (("gate", 0), ("up", 0), ("down", 1)):
            whole = np.concatenate([found[f"{layer}.{n}.{name}"].weight for n in range(4)], axis)
            same(Matrix(Plain("F16"), (0, 0), whole), source.tensors[f"{at}{name}_proj.weight"])


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_quantised_as_quant_does(bits: int, dtype: Any, tmp_path: Path) -> None:
    source = pub.qwen3_5_moe(dtype=dtype)
    store = made(source, tmp_path, bits=bits, group=32, trunk_bits=bits)
    trunk = store.trunk()
    for name, array in source.tensors.items():
        found = trunk.get(without_prefix(name))
        if found is None:
            continue
        router = name.endswith(("mlp.gate.weight", "shared_expert_gate.weight"))
        if array.ndim != 2:
            same(found, array[:, 0] if array.ndim == 3 else array)
            continue
        form = Affine(max(bits, 8) if router else bits, 32, dtype)
        wanted = quantize(array, form)
        assert found.form == form
        for ours, theirs in zip(found.arrays(), wanted.arrays(), strict=True):
            assert ours.tobytes() == theirs.tobytes()
    for place, found in experts_of(store).items():
        layer, expert, name = place.split(".")
        plain = routed(source, int(layer), int(expert))[("gate", "up", "down").index(name)]
        wanted = quantize(plain, Affine(bits, 32, dtype))
        for ours, theirs in zip(found.arrays(), wanted.arrays(), strict=True):
            assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize(
    ("options", "expert", "matrix", "router"),
    [
        ({}, 4, 4, 8),
        ({"bits": 2}, 2, 4, 8),
        ({"bits": 3, "trunk_bits": 16}, 3, 16, 16),
        ({"bits": 8}, 8, 8, 8),
        ({"bits": 16}, 16, 16, 16),
        ({"bits": 16, "trunk_bits": 4}, 16, 4, 8),
    ],
)
def test_bits_of_each_part(
    options: dict[str, int], expert: int, matrix: int, router: int, tmp_path: Path
) -> None:
    store = made(pub.qwen3_5_moe(), tmp_path, **options)
    forms = {tensor.name: tensor.form for tensor in store.manifest.trunk}

    def form(bits: int) -> Affine | Plain:
        return Plain("BF16") if bits == 16 else Affine(bits, 64, "BF16")

    assert store.layout(2).down == store.layout(0).gate == form(expert)
    assert forms["embed_tokens.weight"] == forms["lm_head.weight"] == form(matrix)
    assert forms["layers.0.linear_attn.in_proj_b.weight"] == form(matrix)
    assert forms["layers.1.mlp.gate.weight"] == form(router)
    assert forms["layers.1.mlp.shared_expert_gate.weight"] == form(router)
    assert forms["layers.1.input_layernorm.weight"] == Plain("BF16")
    assert forms["layers.1.linear_attn.A_log"] == Plain("F32")
    assert forms["layers.1.linear_attn.conv1d.weight"] == Plain("BF16")


def test_mlx_is_repacked_bit_for_bit(tmp_path: Path) -> None:
    source = as_mlx(pub.qwen3_5_moe(), bits=3)
    convert(source.write(tmp_path / "published", by="mlx"), tmp_path / "store")
    store = Store.open(tmp_path / "store")
    trunk = store.trunk()
    for name, array in source.tensors.items():
        ours = name.removeprefix("language_model.").removeprefix("model.")
        if "switch_mlp" in ours:
            continue
        stem, part = ours.rsplit(".", 1)
        if part in ("scales", "biases"):
            stored = getattr(trunk[f"{stem}.weight"], part)
        else:
            stored = trunk[ours].weight
        assert stored.tobytes() == np.ascontiguousarray(array).tobytes(), name
    for place, found in experts_of(store).items():
        layer, expert, name = place.split(".")
        at = f"language_model.model.layers.{layer}.mlp.switch_mlp.{name}_proj"
        for part, stored in zip(("weight", "scales", "biases"), found.arrays(), strict=True):
            wanted = source.tensors[f"{at}.{part}"][int(expert)]
            assert stored.tobytes() == wanted.tobytes(), place
    assert store.layout(0).down == Affine(8, 64, "BF16") and store.layout(1).down.bits == 3  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_0", "Q4_1"])
def test_gguf_is_mapped_exactly_and_rows_are_put_back(kind: str, tmp_path: Path) -> None:
    source = pub.llama(dtype="F32")
    convert(write_gguf(source, tmp_path / "m.gguf", kind), tmp_path / "store", slices=4)
    store = Store.open(tmp_path / "store")
    number = GGMLQuantizationType[kind]

    def rounded(name: str) -> Array:
        chosen = number
        if "embed" in name:
            chosen = GGMLQuantizationType["Q8_0" if kind[0] == "Q" else "F16"]
        # Rows are rounded one by one, so that their order does not matter.
        blocks = quants.quantize(source.tensors[f"model.{name}.weight"], chosen)
        values: Array = quants.dequantize(blocks, chosen)
        return values

    for name, found in store.trunk().items():
        if found.weight.ndim == 1:
            same(found, source.tensors[f"model.{name}"])
        else:
            np.testing.assert_array_equal(dequantize(found), rounded(name.removesuffix(".weight")))
    for layer in range(3):
        whole = rounded(f"layers.{layer}.mlp.down_proj")
        for place, found in experts_of(store).items():
            if place.startswith(f"{layer}.") and place.endswith("down"):
                start = 128 * int(place.split(".")[1])
                np.testing.assert_array_equal(dequantize(found), whole[:, start : start + 128])
    plain = Plain("F32") if kind == "F32" else Plain("F16")
    assert (store.layout(0).gate == plain) is (kind[0] == "F")


def test_an_unquantised_gguf_can_be_quantised(tmp_path: Path) -> None:
    path = write_gguf(pub.llama(), tmp_path / "m.gguf", "F16")
    manifest = convert(path, tmp_path / "store", bits=4)
    assert manifest.layers[0].layout.up == Affine(4, 64, "F16")


def test_layout_of_the_files_does_not_matter(tmp_path: Path) -> None:
    """One file or shards, experts fused or one by one: the same bytes."""
    fused = pub.qwen3_moe(fused=True)
    single = Published(fused.config, texts=fused.texts)
    for name, array in fused.tensors.items():
        if name.endswith("experts.gate_up_proj"):
            at = name.removesuffix("gate_up_proj")
            for expert, both in enumerate(array):
                single.tensors[f"{at}{expert}.gate_proj.weight"] = both[:64]
                single.tensors[f"{at}{expert}.up_proj.weight"] = both[64:]
        elif name.endswith("experts.down_proj"):
            at = name.removesuffix("down_proj")
            for expert, down in enumerate(array):
                single.tensors[f"{at}{expert}.down_proj.weight"] = down
        else:
            single.tensors[name] = array
    convert(fused.write(tmp_path / "a"), tmp_path / "one", bits=3)
    convert(fused.write(tmp_path / "b", shards=3), tmp_path / "two", bits=3)
    convert(single.write(tmp_path / "c", shards=5), tmp_path / "three", bits=3)
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(tmp_path / "three")


def test_blocks_and_threads_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = pub.qwen3_next().write(tmp_path / "published")
    convert(source, tmp_path / "a")
    monkeypatch.setattr(conversion, "BLOCK_BYTES", 700)
    monkeypatch.setattr("flashmoe.store.convert.THREADS", 5)
    convert(source, tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_the_store_does_not_know_where_or_when(tmp_path: Path) -> None:
    source = pub.mixtral().write(tmp_path / "published")
    convert(source, tmp_path / "a")
    os.utime(source / "model.safetensors", (0, 0))
    source.rename(tmp_path / "elsewhere")
    convert(tmp_path / "elsewhere", tmp_path / "deep" / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "deep" / "b")
    assert str(tmp_path) not in (tmp_path / "a" / MANIFEST).read_text()


def test_the_safetensors_library_opens_every_file(tmp_path: Path) -> None:
    store = made(pub.qwen3_5_moe(), tmp_path)
    trunk, experts = store.trunk(), experts_of(store)
    with safe_open(store.path / TRUNK, framework="np") as file:
        assert set(file.keys()) == set(store.manifest.trunk_checksums)
        for name in ("embed_tokens.weight", "layers.0.linear_attn.A_log"):
            assert file.get_tensor(name).tobytes() == trunk[name].weight.tobytes()
    for layer in range(4):
        with safe_open(store.path / f"layer-{layer:03d}.safetensors", framework="np") as file:
            words = file.get_tensor("experts.5.up_proj.weight")
            assert words.tobytes() == experts[f"{layer}.5.up"].weight.tobytes()
            assert file.get_slice("experts.7.down_proj.scales").get_shape() == [64, 1]


def test_the_examples_of_the_format_page(tmp_path: Path) -> None:
    store = made(pub.qwen3_5_moe(), tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "FORMAT.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, Any] = {"store": store.path}
    for block in blocks:
        exec(block, names)
    expected = dequantize(experts_of(store)["0.3.down"])
    np.testing.assert_array_equal(names["weights"], expected)


def test_text_files_are_copied_where_there_are_any(tmp_path: Path) -> None:
    source = pub.llama()
    store = made(source, tmp_path / "a")
    assert set(store.manifest.files) == set(source.texts)
    for name, text in source.texts.items():
        assert (store.path / name).read_bytes() == text
    bare = made(Published(source.config, source.tensors), tmp_path / "b")
    assert not bare.manifest.files and not list(bare.path.glob("tok*"))


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    seen: list[Progress] = []
    source = pub.mixtral().write(tmp_path / "published")
    convert(source, tmp_path / "store", progress=seen.append)
    done = [state.done_bytes for state in seen]
    sizes = Store.open(tmp_path / "store").file_sizes()
    assert done == sorted(done) and done[-1] == seen[-1].total_bytes == sum(sizes.values())
    assert [state.what for state in seen][:1] == [TRUNK]
    assert set(sizes) == {state.what for state in seen}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"bits": 7}, "--bits is 7"),
        ({"bits": 4, "trunk_bits": 1}, "--trunk-bits is 1"),
        ({"group": 48}, "--group is 48"),
        ({"bits": 16, "group": 64}, "--group 64 has no effect"),
    ],
)
def test_impossible_options(options: dict[str, Any], named: str, tmp_path: Path) -> None:
    source = pub.mixtral().write(tmp_path / "published")
    with pytest.raises(InputError, match=named):
        convert(source, tmp_path / "store", **options)
    assert not (tmp_path / "store").exists()


def test_a_group_that_does_not_fit_names_the_tensor(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"layer 0: 64 inputs .* use --group 64"):
        made(pub.qwen3_moe(), tmp_path, group=128)
    with pytest.raises(ConversionError, match=r"embed_tokens\.weight: 96 inputs .* use --group 32"):
        made(
            pub.llama(hidden_size=96, num_attention_heads=6), tmp_path / "b", trunk_bits=4, bits=16
        )


@pytest.mark.parametrize("options", [{"bits": 4}, {"group": 64}, {"trunk_bits": 16}])
def test_quantised_sources_take_no_options(options: dict[str, Any], tmp_path: Path) -> None:
    name = "--" + next(iter(options)).replace("_", "-")
    mlx = as_mlx(pub.qwen3_5_moe()).write(tmp_path / "mlx", by="mlx")
    gguf = write_gguf(pub.llama(), tmp_path / "m.gguf")
    for source in (mlx, gguf):
        with pytest.raises(ConversionError, match=f"repacked as they are: leave out {name}"):
            convert(source, tmp_path / "store", **options)


@pytest.mark.parametrize("name", ["mlp.experts.down_proj", "linear_attn.out_proj.weight"])
def test_a_weight_that_is_not_finite_is_named(name: str, tmp_path: Path) -> None:
    source = pub.qwen3_5_moe()
    source.tensors[f"model.language_model.layers.1.{name}"][..., 3, 2] = np.inf
    with pytest.raises(CheckpointError, match=f"layers.1.{name}: a weight is NaN or infinite"):
        made(source, tmp_path)


def test_a_truncated_or_missing_shard_is_named(tmp_path: Path) -> None:
    source = pub.mixtral().write(tmp_path / "published", shards=3)
    shard = source / "model-00002-of-00003.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1000])
    with pytest.raises(CheckpointError, match="model-00002-of-00003"):
        convert(source, tmp_path / "store")
    shard.unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00003"):
        convert(source, tmp_path / "store")
    assert not (tmp_path / "store").exists()


class Stop(Exception):
    """Raised by a watcher, to interrupt a conversion."""


def interrupt(source: Path, store: Path, file: str, nth: int, **options: Any) -> None:
    """Convert until the ``nth`` report about ``file`` has come."""
    left = [nth]

    def watch(state: Progress) -> None:
        left[0] -= state.what == file
        if left[0] == 0:
            raise Stop

    with pytest.raises(Stop):
        convert(source, store, progress=watch, **options)


LAYERS = tuple(f"layer-{layer:03d}.safetensors" for layer in range(3))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A published checkpoint of three layers of eight records."""
    return pub.qwen3_moe().write(tmp_path / "published")


def test_an_unfinished_store_does_not_open_and_says_so(source: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    interrupt(source, store, LAYERS[1], 5)
    with pytest.raises(StoreError, match="unfinished store: run the same"):
        Store.open(store)


@pytest.mark.parametrize(
    ("file", "nth"), [(TRUNK, 1), (TRUNK, 20), (LAYERS[0], 1), (LAYERS[1], 5), (LAYERS[2], 9)]
)
def test_going_on_gives_the_same_bytes_and_redoes_nothing(
    file: str, nth: int, source: Path, tmp_path: Path
) -> None:
    convert(source, tmp_path / "whole")
    store = tmp_path / "store"
    interrupt(source, store, file, nth)
    reached = (TRUNK, *LAYERS).index(file)
    finished = {path: path.stat().st_mtime_ns for path in store.glob("*.safetensors")}
    assert {path.name for path in finished} == set((TRUNK, *LAYERS)[:reached])
    assert not list(store.glob("*.partial"))
    seen: list[Progress] = []
    convert(source, store, progress=seen.append)
    assert contents(store) == contents(tmp_path / "whole")
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert {path.name for path in finished}.isdisjoint({state.what for state in seen})
    assert JOURNAL not in contents(store)


def test_a_torn_journal_and_lost_files_are_made_good(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "whole")
    store = tmp_path / "store"
    interrupt(source, store, LAYERS[2], 9)
    journal = (store / JOURNAL).read_bytes()
    assert journal.count(b"\n") == 4  # header, trunk, two layers
    (store / "layer-000.safetensors").write_bytes(b"short")
    (store / JOURNAL).write_bytes(journal[:-7])  # the line of layer 1 torn
    (store / "layer-007.safetensors.partial").write_bytes(b"left by a kill")
    convert(source, store)
    assert contents(store) == contents(tmp_path / "whole")


def test_other_options_or_another_source_do_not_go_on(source: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    interrupt(source, store, LAYERS[1], 5, bits=3)
    before = contents(store)
    with pytest.raises(ConversionError, match=r"with other options \(.*--bits 3 .*--force"):
        convert(source, store, bits=4)
    other = pub.qwen3_moe(moe_intermediate_size=128).write(tmp_path / "other")
    with pytest.raises(ConversionError, match="of another checkpoint"):
        convert(other, store, bits=3)
    assert contents(store) == before
    convert(source, store, bits=4, force=True)
    assert Store.open(store).manifest.conversion["bits"] == 4


def test_a_complete_store_is_replaced_only_by_force(source: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    convert(pub.qwen3_next().write(tmp_path / "four"), store)
    before = contents(store)
    with pytest.raises(ConversionError, match=r"complete store already.*--force"):
        convert(source, store)
    assert contents(store) == before
    (store / "notes.txt").write_text("mine")
    convert(source, store, force=True)
    convert(source, tmp_path / "fresh")
    assert contents(store) == {**contents(tmp_path / "fresh"), "notes.txt": b"mine"}


def test_force_interrupted_goes_on_as_the_new_one(source: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    convert(source, store)
    interrupt(source, store, TRUNK, 2, bits=8, force=True)
    with pytest.raises(StoreError, match="unfinished"):
        Store.open(store)
    convert(source, store, bits=8)
    convert(source, tmp_path / "fresh", bits=8)
    assert contents(store) == contents(tmp_path / "fresh")


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("name", ["thesis.tex", "layer-000.safetensors", MANIFEST, JOURNAL])
def test_a_directory_of_something_else_is_left_alone(
    name: str, force: bool, source: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (store / name).write_text('{"format": "other"}\n')
    before = contents(store)
    with pytest.raises(ConversionError, match="choose another destination"):
        convert(source, store, force=force)
    assert contents(store) == before


@pytest.mark.parametrize("force", [False, True])
def test_an_empty_journal_among_other_files_is_not_ours(
    force: bool, source: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (store / "tokenizer.json").write_text("mine")
    (store / JOURNAL).touch()
    with pytest.raises(ConversionError, match="not a store"):
        convert(source, store, force=force)
    assert (store / "tokenizer.json").read_text() == "mine"


def test_destinations_that_cannot_be(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConversionError, match="is a file"):
        convert(source, tmp_path / "file")
    with pytest.raises(ConversionError, match="cannot be written"):
        convert(source, tmp_path / "file" / "below")
    with pytest.raises(ConversionError, match="not empty and not a store"):
        convert(source, source, force=True)


def test_two_conversions_do_not_share_a_directory(source: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    interrupt(source, store, LAYERS[1], 5)
    journal = Journal(store)
    with pytest.raises(ConversionError, match="another conversion is writing"):
        convert(source, store)
    with pytest.raises(ConversionError, match="another conversion is writing"):
        convert(source, store, force=True)
    journal.close()
    convert(source, store)
    assert not verify(store).faults


Usage = namedtuple("Usage", "total used free")


def test_the_disk_is_checked_first(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10, 10, 1_234_567))
    with pytest.raises(ConversionError, match=r"needs 1,\d\d\d,\d\d\d bytes .* has 1,234,567 free"):
        convert(source, tmp_path / "store", bits=16)
    assert not (tmp_path / "store").exists()


def test_what_is_there_already_needs_no_room(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old store that force will free counts as room, and stays while there is too little."""
    store = tmp_path / "store"
    convert(source, store, bits=8)
    before = contents(store)
    small = workshop.SMALL_FILES_BYTES + 100_000
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10, 10, small))
    with pytest.raises(ConversionError, match="make room"):
        convert(source, store, bits=16, force=True)
    assert contents(store) == before
    convert(source, store, bits=4, force=True)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 0, 10**12))
    interrupt(source, tmp_path / "half", LAYERS[2], 9)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10, 10, small + 100_000))
    convert(source, tmp_path / "half")
    with pytest.raises(ConversionError, match="make room"):
        convert(source, tmp_path / "whole")


def test_a_journal_of_nonsense_is_an_error_of_ours(source: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    interrupt(source, store, LAYERS[2], 9)
    header = (store / JOURNAL).read_bytes().splitlines()[0] + b"\n"
    for lines in (b"[]\n", b"\xff\xff\n", b"{" * 100_000 + b"\n", header[:-1]):
        (store / JOURNAL).write_bytes(lines)
        with pytest.raises(ConversionError, match="is not the journal of a conversion"):
            convert(source, store)
    junk = [{}, {"file": 3}, {"file": "../x"}, {"file": TRUNK, "checksums": []}]
    (store / JOURNAL).write_bytes(header + b"".join(json.dumps(e).encode() + b"\n" for e in junk))
    convert(source, store)
    convert(source, tmp_path / "whole")
    assert contents(store) == contents(tmp_path / "whole")


def test_every_refusal_is_ours(tmp_path: Path) -> None:
    for wrong in (tmp_path / "absent", tmp_path):
        with pytest.raises(FlashMoeError):
            convert(wrong, tmp_path / "store")
