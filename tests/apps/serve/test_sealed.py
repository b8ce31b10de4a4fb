"""What is sealed comes back; what others have sealed does not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmoe.apps.serve.sealed import seal, unseal


@given(st.text())
def test_it_comes_back(text: str) -> None:
    assert unseal(seal(text)) == text


@pytest.mark.parametrize("foreign", ["", "EqQBCkYIBxgC", "fm1.a", "fm1.é", "fm1._w=="])
def test_what_is_not_ours_cannot_be_read(foreign: str) -> None:
    assert unseal(foreign) is None
