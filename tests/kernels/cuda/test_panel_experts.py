"""A chunk's experts on an imitated GPU against the reference."""

import numpy as np
import pytest

from flashmoe.kernels import reference
from flashmoe.kernels.cuda import panel_experts, panels
from flashmoe.kernels.cuda.descriptors import resident
from flashmoe.quant import Affine, Plain
from flashmoe.store.layout import RecordLayout
from tests.kernels.cuda.emulated import EmulatedDevice
from tests.kernels.test_cpu import an_expert, stored
from tests.tolerances import PANEL

NETWORKS = {
    "4 bits": [Affine(4, 64)] * 3,
    "gate and up differ": [Affine(3, 32), Affine(2, 64), Affine(6, 32)],
    "plain": [Plain("BF16")] * 3,
    "plain up": [Affine(8, 128), Plain("F16"), Affine(4, 32)],
}
HIDDEN, COUNT, TOP_K = 256, 6, 3


class Layer:
    """Experts in an arena, the last one first, and activations that choose among them."""

    def __init__(self, device, forms, width=192, rows=33, most_places=1000):
        rng = np.random.default_rng(8)
        self.device = device
        layout = RecordLayout(*forms, HIDDEN, width)
        self.experts = [an_expert(rng, forms, HIDDEN, width) for _ in range(COUNT)]
        self.arena = device.upload(np.concatenate([layout.encode(e) for e in self.experts[::-1]]))
        record = [
            (form, shape, tuple(field.offset for field in fields))
            for form, shape, fields in layout.matrices
        ]
        places = device.address(self.arena), layout.record_bytes
        self.part = panel_experts.Experts(device, *places, record, most_places)
        self.x, self.start = (rng.standard_normal((rows, HIDDEN)).astype(np.float32) for _ in "xy")
        self.ids = np.array([rng.permutation(COUNT - 1)[:TOP_K] for _ in range(rows)])
        self.weights = rng.random((rows, TOP_K)).astype(np.float32)

    def held(self, numbers):
        return [(number, COUNT - 1 - number) for number in numbers]

    def add(self, *batches):
        y, device = self.device.upload(self.start), self.device
        x, weights = panels.Rows(device, device.upload(self.x)), device.upload(self.weights)
        meetings = panel_experts.Meetings(device, self.ids)
        for batch in batches:
            self.part(x, meetings, weights, self.held(batch), y)
        return device.download(y)


@pytest.mark.parametrize("width", (64, 192))
@pytest.mark.parametrize("network", NETWORKS)
def test_experts(device, network, width):
    layer = Layer(device, NETWORKS[network], width)
    wanted = layer.start + reference.experts(
        layer.x.astype(np.float64), layer.ids, layer.weights, list(enumerate(layer.experts))
    )
    y = layer.add(range(COUNT))
    assert np.abs(y - wanted).max() <= PANEL * np.abs(wanted).max()


def test_neither_batches_nor_portions_change_a_bit():
    device = EmulatedDevice()
    layer = Layer(device, NETWORKS["4 bits"])
    whole = layer.add(range(COUNT))
    assert device.launches.count("combine") == 1
    np.testing.assert_array_equal(layer.add([0], [1, 2], [3, 4, 5]), whole)
    for most in (1, 40):
        small = Layer(device, NETWORKS["4 bits"], most_places=most)
        device.launches.clear()
        np.testing.assert_array_equal(small.add(range(COUNT)), whole)
        assert device.launches.count("combine") > 1


def test_more_rows_than_a_tile_and_one_row(device):
    layer = Layer(device, NETWORKS["4 bits"], rows=130)
    whole = layer.add(range(COUNT))
    layer.x, layer.ids, layer.weights, layer.start = (
        a[77:78] for a in (layer.x, layer.ids, layer.weights, layer.start)
    )
    np.testing.assert_array_equal(layer.add(range(COUNT))[0], whole[77])


def test_what_is_not_finite_shows_in_its_row_alone(device):
    layer = Layer(device, NETWORKS["4 bits"])
    clean = layer.add(range(COUNT))
    layer.x[5, 70] = np.nan
    y = layer.add(range(COUNT))
    assert np.isnan(y[5]).all()
    np.testing.assert_array_equal(np.delete(y, 5, 0), np.delete(clean, 5, 0))


def test_experts_that_nobody_chose_are_left_alone():
    device = EmulatedDevice()
    layer = Layer(device, NETWORKS["4 bits"])
    before = list(device.launches)
    np.testing.assert_array_equal(layer.add([COUNT - 1], []), layer.start)
    assert device.launches == before


def test_every_use_has_its_place(device):
    ids = np.array([[4, 1], [1, 0], [4, 0], [1, 3]])
    met = panel_experts.Meetings(device, ids)
    assert met.begins == [0, 2, 5, 5, 6, 8]
    np.testing.assert_array_equal(device.download(met.tokens), [1, 2, 0, 1, 3, 3, 0, 2])
    uses = [[[2, 1], [6, 0]], [[0, 3], [3, 2]], [[1, 5], [7, 4]], [[4, 6], [5, 7]]]
    np.testing.assert_array_equal(device.download(met.uses), uses)
    np.testing.assert_array_equal(met.tiles([(0, 7), (1, 5)]), [[7, 0, 2], [5, 2, 3]])
    np.testing.assert_array_equal(met.tiles([(1, 5), (3, 2)]), [[5, 0, 3], [2, 3, 1]])


def test_an_expert_of_many_rows_has_several_tiles(device):
    met = panel_experts.Meetings(device, np.array([[0, 2]] * 70 + [[2, 0]] * 60))
    tiles = [[9, 0, 64], [9, 64, 64], [9, 128, 2], [1, 130, 64], [1, 194, 64], [1, 258, 2]]
    np.testing.assert_array_equal(met.tiles([(0, 9), (2, 1)]), tiles)
    np.testing.assert_array_equal(met.tiles([(2, 1)])[:, 1], [0, 64, 128])


def test_portions_are_of_places_that_follow_one_another():
    begins, held = [0, 2, 5, 5, 6, 8], [(0, 7), (1, 5), (2, 1), (3, 2), (4, 9), (5, 0)]
    met = [held[0], held[1], held[3], held[4]]
    assert list(panel_experts.portions(begins, held, 8)) == [met]
    assert list(panel_experts.portions(begins, held, 5)) == [met[:2], met[2:]]
    assert list(panel_experts.portions(begins, held, 1)) == [[one] for one in met]
    assert list(panel_experts.portions(begins, [held[0], held[3], held[4]], 8)) == [
        [held[0]],
        [held[3], held[4]],
    ]


@pytest.mark.parametrize("gated", (True, False))
@pytest.mark.parametrize("network", NETWORKS)
def test_the_shared_expert(device, network, gated):
    rng = np.random.default_rng(9)
    expert = an_expert(rng, NETWORKS[network], HIDDEN, 192)
    gate = stored(rng, Plain("BF16"), 1, HIDDEN)
    x, start = (rng.standard_normal((7, HIDDEN)).astype(np.float32) for _ in range(2))
    rows, y, logits = panels.Rows(device, device.upload(x)), device.upload(start), None
    if gated:
        logits = device.empty((7, 1), np.float32)
        panels.Products(device, [resident(device, gate)])(rows, [logits])
    matrices = (resident(device, m) for m in (expert.gate, expert.up, expert.down))
    panel_experts.SharedExpert(device, *matrices)(rows, logits, y)
    wide = x.astype(np.float64)
    wanted = start + reference.swiglu(wide, expert, gate if gated else None)
    assert np.abs(device.download(y) - wanted).max() <= PANEL * np.abs(wanted).max()


def test_what_does_not_fit_is_refused(device):
    layer = Layer(device, NETWORKS["4 bits"])
    layer.ids = layer.ids[:-1]
    with pytest.raises(ValueError, match="32 ids for activations"):
        layer.add(range(COUNT))
