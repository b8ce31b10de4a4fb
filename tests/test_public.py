"""The public surface: every promised name is there, and nothing else is imported for it."""

import subprocess
import sys

import pytest

import flashmoe
import flashmoe.errors


@pytest.mark.parametrize("name", flashmoe.__all__)
def test_every_public_name_exists(name):
    assert getattr(flashmoe, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing_here"):
        flashmoe.nothing_here  # noqa: B018


def test_errors_have_one_root():
    errors = [name for name in flashmoe.__all__ if name.endswith("Error")]
    assert len(errors) == 13
    assert all(issubclass(getattr(flashmoe, name), flashmoe.FlashMoeError) for name in errors)


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, flashmoe; print([m for m in ('numpy', 'jinja2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_error_is_public():
    kinds = [kind for kind in vars(flashmoe.errors).values() if isinstance(kind, type)]
    errors = {kind.__name__ for kind in kinds if issubclass(kind, flashmoe.FlashMoeError)}
    assert errors <= set(flashmoe.__all__)
