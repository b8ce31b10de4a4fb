"""What the tests of store/ share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flashmoe.store.published_files import OpenFiles


@pytest.fixture
def files() -> Iterator[OpenFiles]:
    opened = OpenFiles()
    yield opened
    opened.close()
