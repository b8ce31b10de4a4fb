"""Device and host at a letter: asked, answered, given up."""

import numpy as np
import pytest

from flashmoe.kernels.cuda import decode
from flashmoe.kernels.cuda.mailbox import LAST, Mailbox

EXPERTS, TOP_K = 16, 4


@pytest.fixture
def router(device):
    """Launches that route once, by a table in pinned memory, and what they write."""
    rng = np.random.default_rng(1)
    mailbox, chosen = Mailbox(device, 2), decode.choice(device, TOP_K)
    table = device.pinned((EXPERTS,), np.int32)
    table[:] = rng.permutation(EXPERTS)
    logits = device.upload(rng.standard_normal(EXPERTS).astype(np.float32))
    arguments = logits, True, table, chosen, mailbox.inputs, mailbox.letter(1)
    decode.route(device, *arguments[:4])  # compiled
    graph = device.captured(lambda: decode.route(device, *arguments))

    def launch(token=0, position=0):
        mailbox.begin(token, position)
        device.write(mailbox.inputs, mailbox.given.copy())
        graph.launch()

    return mailbox, chosen, table, launch


def test_a_choice_whose_slots_are_known_waits_for_nobody(device, router):
    mailbox, chosen, table, launch = router
    launch()
    ids, waits = mailbox.asked(1, TOP_K)
    assert not waits
    np.testing.assert_array_equal(ids, device.download(chosen.ids))
    np.testing.assert_array_equal(device.download(chosen.slots), table[ids])


def test_a_missing_slot_is_waited_for_and_the_answer_taken(device, router):
    mailbox, chosen, table, launch = router
    launch()
    ids, _ = mailbox.asked(1, TOP_K)
    device.synchronize()
    for absent in (ids[:1], ids):
        table[absent] = -1
        launch()
        again, waits = mailbox.asked(1, TOP_K)
        np.testing.assert_array_equal(again, ids)
        assert waits and device.busy()
        mailbox.answer(1, np.arange(TOP_K) + 7)
        np.testing.assert_array_equal(device.download(chosen.slots), np.arange(TOP_K) + 7)


def test_a_pass_that_fails_is_given_up_and_has_ended(device, router):
    mailbox, chosen, table, launch = router
    table[:] = -1
    launch()

    def work():
        mailbox.asked(1, TOP_K)
        raise KeyError("made up")

    with pytest.raises(KeyError, match="made up"):
        mailbox.wait(work)
    assert not device.busy()
    assert not device.download(chosen.slots).any()  # a slot that there is
    launch()
    assert mailbox.asked(1, TOP_K)[1]  # the next one waits again
    mailbox.give_up()
    device.synchronize()


def test_a_layer_that_never_asks_is_found_out(device, router):
    mailbox, _, _, launch = router
    launch()
    with pytest.raises(RuntimeError, match="never asked for layer 0"):
        mailbox.asked(0, TOP_K)


def test_numbers_of_passes_begin_again(device, router):
    mailbox, _, _, launch = router
    mailbox.given[2] = LAST
    launch()
    assert mailbox.step == 1 and not mailbox.asked(1, TOP_K)[1]
