"""generation_config.json: stop ids and sampling defaults, read strictly."""

import json

import pytest

from flashmoe.errors import StoreError
from flashmoe.generation import Generation
from flashmoe.options import Sampling


def read(**config):
    return Generation.from_json(json.dumps(config), "generation_config.json")


def test_a_store_without_one_has_the_library_defaults():
    assert Generation.from_json(None, "x") == Generation(frozenset(), Sampling())


def test_published_values_are_taken():
    made = read(eos_token_id=[7, 9], temperature=0.6, top_p=0.95, top_k=20, do_sample=True)
    assert made.stop_ids == {7, 9}
    assert made.sampling == Sampling(temperature=0.6, top_p=0.95, top_k=20)
    assert read(eos_token_id=3).stop_ids == {3}


def test_do_sample_false_means_greedy():
    assert read(do_sample=False, temperature=0.6).sampling.temperature == 0


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"eos_token_id": ["a"]}', '{"top_p": 3}', '{"temperature": "hot"}']
)
def test_malformed_values_are_refused_by_name(text):
    with pytest.raises(StoreError, match=r"^here is malformed"):
        Generation.from_json(text, "here")
