"""Parameters of sampling as fields of the library's own."""

import pytest

from flashmoe.apps.serve.ask import BadRequest
from flashmoe.apps.serve.fields import Record
from flashmoe.apps.serve.sampling_fields import DRAWN, EXTENSIONS, STOP, drawn
from flashmoe.options import Sampling

TABLE = Record({**DRAWN, **EXTENSIONS, "stop": STOP})


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, {}),
        ({"temperature": 0, "seed": -1}, {"temperature": 0.0, "seed": -1}),
        ({"top_k": 20}, {"top_k": 20}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"stop": "a"}, {"stop": ("a",)}),
        ({"stop": ["a", "b"], "min_p": 0.5}, {"stop": ("a", "b"), "min_p": 0.5}),
        ({"stop": []}, {"stop": ()}),
    ],
)
def test_what_is_given_becomes_a_field(body, fields):
    assert drawn(TABLE.read(body)) == fields
    Sampling(**fields)


@pytest.mark.parametrize("value", [0, 1, 2, -2, 100, 1e-300])
@pytest.mark.parametrize("name", [*DRAWN, *EXTENSIONS])
def test_what_a_table_takes_the_library_takes_too(name, value):
    kind = {**DRAWN, **EXTENSIONS}[name]
    try:
        taken = kind.read(value, name)
    except BadRequest:
        return
    Sampling(**drawn({name: taken}))
