"""Device and host at a letter: offers taken, records brought, sources asked for, giving up."""

import time

import numpy as np
import pytest

from flashmoe.kernels.cuda import decode
from flashmoe.kernels.cuda.mailbox import ASKED, LAST, OFFERS, THERE, Mailbox

EXPERTS, TOP_K, LAYER = 16, 4, 1
RECORD = 4096 + 48
STRIDE, SLOTS = 8192, 24


class Router:
    """A graph that routes once and brings what it misses, by tables in pinned memory."""

    def __init__(self, device):
        rng = np.random.default_rng(1)
        self.device, self.mailbox = device, Mailbox(device, 2)
        self.chosen = decode.choice(device, device.empty((TOP_K,), np.int32))
        self.table = device.pinned((EXPERTS,), np.int32)
        self.table[:] = rng.permutation(EXPERTS)
        self.records = device.pinned((EXPERTS,), np.int32)
        self.ram = device.pinned((EXPERTS, STRIDE), np.uint8)
        self.ram[:] = rng.integers(0, 256, self.ram.shape)
        self.arena = device.upload(np.zeros((SLOTS, STRIDE), np.uint8))
        self.logits = device.upload(rng.standard_normal(EXPERTS).astype(np.float32))
        logits, self.early = self.logits, decode.early(device)
        post = self.post = self.mailbox.post(LAYER, self.records, self.early)
        ram = decode.Places(device.host_address(self.ram), STRIDE)
        slots = decode.Places(device.address(self.arena), STRIDE)

        def bring(chosen):
            decode.bring(device, ram, slots, RECORD, chosen, post)

        def work():
            decode.route(device, logits, True, self.table, self.chosen, post)
            bring(self.chosen)

        def foreseeing(guess, most):
            decode.anticipate(device, guess, TOP_K, most, 2, self.table, post)
            end = device.beside(lambda: bring(self.early.chosen))
            end()
            work()

        self.foreseeing = foreseeing

        self.mailbox.begin(0, 0)
        device.write(self.mailbox.inputs, self.mailbox.given.copy())
        work()  # compiled; and so the ids are known
        device.synchronize()
        self.ids = self.mailbox.asked(LAYER, TOP_K).ids
        self._graph = device.captured(work)

    def begin(self, known):
        """A pass in which the layer before has seen so many slots on offer."""
        self.mailbox.begin(0, 0)
        given = self.mailbox.given.copy()
        given[5] = known
        self.device.write(self.mailbox.inputs, given)

    def launch(self, taken=0):
        """Another pass, before which so many slots were taken."""
        self.mailbox.begin(0, 0, taken)
        self.device.write(self.mailbox.inputs, self.mailbox.given.copy())
        self._graph.launch()

    def offer(self, *slots):
        """These more."""
        ring = self.mailbox.offers
        for slot in slots:
            ring[16 + int(ring[0]) % OFFERS] = slot
            ring[0] = (int(ring[0]) + 1) & 0xFFFFFFFF

    def asked(self):
        return self.mailbox.asked(LAYER, TOP_K)

    def slots(self):
        return self.device.download(self.chosen.slots)

    def check(self, expert, slot, source):
        """The expert's record has been brought from there."""
        found = self.device.download(self.arena)[slot]
        np.testing.assert_array_equal(found[:RECORD], self.ram[source][:RECORD])
        assert not found[RECORD:].any(), "more than a record was copied"


@pytest.fixture
def router(device):
    yield Router(device)
    device.synchronize()  # there is one imitated machine: the next test must find it at rest


def test_what_has_a_slot_waits_for_nobody(device, router):
    router.launch()
    asked = router.asked()
    assert (asked.sources == THERE).all()
    np.testing.assert_array_equal(asked.ids, device.download(router.chosen.ids))
    np.testing.assert_array_equal(asked.slots, router.table[asked.ids])
    np.testing.assert_array_equal(router.slots(), asked.slots)
    assert not device.download(router.arena).any()


@pytest.mark.parametrize("absent", (1, TOP_K))
def test_what_is_in_ram_is_brought_by_the_device_alone(device, router, absent):
    missing = router.ids[-absent:]
    router.table[missing] = -1
    router.records[missing] = np.arange(absent) + 3
    router.offer(20, 17, 22, 16)
    router.launch()
    asked = router.asked()
    device.synchronize()  # nobody answers
    expected = np.r_[router.table[router.ids[: TOP_K - absent]], [20, 17, 22, 16][:absent]]
    np.testing.assert_array_equal(asked.slots, expected)
    np.testing.assert_array_equal(asked.sources[TOP_K - absent :], np.arange(absent) + 3)
    assert (asked.sources[: TOP_K - absent] == THERE).all()
    for k, slot in enumerate([20, 17, 22, 16][:absent]):
        router.check(missing[k], slot, 3 + k)
    assert device.download(router.mailbox.inputs)[3] == absent


def test_a_pass_begins_where_the_one_before_ended(device, router):
    router.table[router.ids] = -1
    router.records[:] = 1
    router.offer(*range(16, 24))
    for taken, slots in ((0, range(16, 20)), (4, range(20, 24)), (2, range(18, 22))):
        router.launch(taken)
        np.testing.assert_array_equal(router.asked().slots, slots)
        device.synchronize()


def test_the_host_is_asked_for_what_the_device_does_not_find(device, router):
    first, second = router.ids[1:3]
    router.table[[first, second]] = -1
    router.records[:] = -1
    router.records[second] = 9
    router.offer(16, 17)
    router.launch()
    asked = router.asked()
    assert asked.sources.tolist() == [THERE, ASKED, 9, THERE]
    time.sleep(0.01)
    assert device.busy()
    router.mailbox.answer(LAYER, 1, 5)
    device.synchronize()
    router.check(first, 16, 5)
    router.check(second, 17, 9)


def test_slots_are_waited_for_and_the_table_read_again(device, router):
    """What leaves the table before its slot is offered is not believed to be there."""
    first, last = router.ids[0], router.ids[-1]
    router.table[first] = -1
    router.records[:] = 2
    router.launch()
    time.sleep(0.01)
    assert device.busy()
    given = int(router.table[last])
    router.table[last] = -1
    router.offer(given)  # one, and now two are missing
    time.sleep(0.01)
    assert device.busy()
    router.offer(23)
    asked = router.asked()
    assert asked.slots[0] == given and asked.slots[-1] == 23
    device.synchronize()
    router.check(first, given, 2)
    router.check(last, 23, 2)


def test_there_is_something_to_do_beside_while_a_letter_is_waited_for(device, router):
    router.table[router.ids[0]] = -1
    router.records[:] = 2
    router.launch()
    slots = [23]
    asked = router.mailbox.asked(LAYER, TOP_K, lambda: router.offer(*slots) or slots.clear())
    assert asked.slots[0] == 23 and not slots
    device.synchronize()


def test_the_count_of_offers_begins_again(device, router):
    router.table[router.ids] = -1
    router.records[:] = 0
    router.mailbox.offers[0] = 0xFFFFFFFE
    router.offer(16, 17, 18, 19)
    assert router.mailbox.offers[0] == 2
    router.launch(0xFFFFFFFE)
    np.testing.assert_array_equal(router.asked().slots, [16, 17, 18, 19])
    device.synchronize()
    assert device.download(router.mailbox.inputs)[3] == 2


@pytest.mark.parametrize("offered", (0, TOP_K))
def test_a_pass_that_fails_is_given_up_and_has_ended(device, router, offered):
    """Whether it waits for slots or for a source."""
    router.table[:] = -1
    router.records[:] = -1
    router.offer(*range(16, 16 + offered))
    router.launch()

    def work():
        time.sleep(0.01)
        assert device.busy()
        raise KeyError("made up")

    with pytest.raises(KeyError, match="made up"):
        router.mailbox.wait(work)
    assert not device.busy()
    assert not device.download(router.arena).any()
    router.records[:] = 7
    router.offer(*range(16, 20))
    router.launch()  # the next one is as any other
    asked = router.asked()
    device.synchronize()
    assert (asked.sources == 7).all()


def test_a_pass_that_nobody_gave_up_ends_when_another_begins(device, router):
    router.table[:] = -1
    router.launch()
    step = router.mailbox.step
    time.sleep(0.01)
    assert device.busy()
    try:
        router.mailbox.begin(0, 0)
        until = time.monotonic() + 10
        while device.busy() and time.monotonic() < until:
            time.sleep(0.001)
        assert not device.busy()
    finally:
        router.mailbox._answered[:] = -step  # else it would wait for ever
        device.synchronize()


@pytest.mark.parametrize("most", (1, 2, 4))
def test_what_is_anticipated_has_come_when_the_router_chooses_it(device, router, most):
    guess = np.full(EXPERTS, -9, np.float32)
    first, second = router.ids[:2]
    wrong, unknown = sorted(set(range(EXPERTS)) - set(router.ids.tolist()))[:2]
    guess[[wrong, unknown, first]] = 4, 3, 2  # and the lowest of the others behind them
    router.table[[wrong, unknown, first, second]] = -1
    router.records[:] = np.arange(EXPERTS)
    router.records[unknown] = -1
    router.offer(16, 17, 18, 19)
    logits = device.upload(guess)
    decode.anticipate(device, logits, TOP_K, most, 2, router.table, router.post)  # compiled
    graph = device.captured(lambda: router.foreseeing(logits, most))
    router.begin(known=4)
    graph.launch()
    asked = router.asked()
    device.synchronize()
    early = {wrong: 16} if most == 1 else {wrong: 16, int(first): 17}  # two are left on offer
    assert asked.early == early
    slots = dict(zip(asked.ids.tolist(), asked.slots.tolist(), strict=True))
    assert slots[first] == 17 and slots[second] == 18
    for expert, slot in {**early, int(first): 17, int(second): 18}.items():
        router.check(expert, slot, expert)
    sources = dict(zip(asked.ids.tolist(), asked.sources.tolist(), strict=True))
    assert sources[second] == second and sources[first] == (first if most == 1 else THERE)


def test_nothing_is_anticipated_where_few_slots_are_left(device, router):
    router.table[router.ids] = -1
    router.records[:] = 1
    router.offer(16, 17)
    router.begin(known=2)
    decode.anticipate(device, router.logits, TOP_K, 2, 2, router.table, router.post)
    device.synchronize()
    assert (device.download(router.early.whole)[:4] == -1).all()
    assert device.download(router.mailbox.inputs)[3] == 0


def test_nothing_is_anticipated_in_slots_that_the_layer_before_may_still_read(device, router):
    """Whoever was in those that were offered since is perhaps among its experts."""
    router.table[router.ids] = -1
    router.records[:] = 1
    router.offer(16, 17, 18, 19)
    router.begin(known=3)
    decode.anticipate(device, router.logits, TOP_K, 2, 2, router.table, router.post)
    device.synchronize()
    early = device.download(router.early.whole)
    assert early[4] == 16 and (early[1:4] == -1).all()
    assert device.download(router.mailbox.inputs)[3] == 1


def test_a_choice_says_how_many_slots_were_on_offer_before_it_looked(device, router):
    router.offer(16, 17, 18)
    router.launch()
    router.asked()
    device.synchronize()
    router.offer(19)
    assert device.download(router.mailbox.inputs)[5] == 3


def test_what_cannot_be_anticipated_is_refused(device, router):
    for reach, most in ((TOP_K, 0), (TOP_K, 5), (0, 1), (32, 1)):
        with pytest.raises(ValueError, match="are not to be anticipated"):
            decode.anticipate(device, router.logits, reach, most, 2, router.table, router.post)
    with pytest.raises(ValueError, match="must be found in RAM"):
        post = router.mailbox.post(LAYER)
        decode.anticipate(device, router.logits, 1, 1, 2, router.table, post)


def test_a_layer_that_never_asks_is_found_out(device, router):
    router.launch()
    with pytest.raises(RuntimeError, match="never asked for layer 0"):
        router.mailbox.asked(0, TOP_K)


def test_numbers_of_passes_begin_again(device, router):
    router.mailbox.given[2] = LAST
    router.launch()
    assert router.mailbox.step == 1 and (router.asked().sources == THERE).all()


def test_records_are_whole_chunks(device, router):
    places = decode.Places(0, STRIDE)
    post = router.mailbox.post(0)
    with pytest.raises(ValueError, match="4097 bytes"):
        decode.bring(device, places, places, 4097, router.chosen, post)
