"""Names: the same for the same tokens, and for nothing else."""

from hypothesis import given
from hypothesis import strategies as st

from flashmoe.prefix import keys

tokens = st.lists(st.integers(0, 3), max_size=40)


@given(tokens, tokens)
def test_a_digest_is_that_of_the_first_tokens_alone(one, other):
    for length in range(min(len(one), len(other)) + 1):
        alike = keys.digests(one, [length]) == keys.digests(other, [length])
        assert alike == (one[:length] == other[:length])


@given(tokens, st.sets(st.integers(0, 40)))
def test_digests_of_several_lengths_are_those_of_each(ids, lengths):
    wanted = sorted(length for length in lengths if length <= len(ids))
    each = [keys.digests(ids, [length])[0] for length in wanted]
    assert keys.digests(ids, wanted) == each


def test_a_path_is_the_short_digests_of_every_64_tokens():
    ids = list(range(200))
    whole = keys.digests(ids, [64, 128, 192])
    assert keys.path(ids) == [digest[:16] for digest in whole]
    assert keys.path(ids[:63]) == []


def test_an_identity_depends_on_everything_and_shows_the_form_of_keys_and_values():
    names = {
        keys.identity("00-f16", "cpu", "1"),
        keys.identity("01-f16", "cpu", "1"),
        keys.identity("00-int8", "cpu", "1"),
        keys.identity("00-f16", "reference", "1"),
        keys.identity("00-f16", "cpu", "2"),
    }
    assert len(names) == 5
    assert keys.identity("00-f16", "cpu", "1").endswith("-f16")
