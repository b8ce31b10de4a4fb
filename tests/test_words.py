"""What a store says of its words, and what is there without them."""

from __future__ import annotations

from pathlib import Path

from flashmoe import Engine
from flashmoe.store.reader import Store
from flashmoe.text.syntax import Syntax
from flashmoe.words import Words
from tests.synthetic import write_store


def test_the_demo_has_all_of_them() -> None:
    words = Words(Store.open("demo"))
    assert words.tokenizer is not None and words.template is not None
    assert words.syntax.calls == "xml"
    assert words.syntax.think_open is not None and words.syntax.think_open.id == 4094
    assert words.stop_ids == {4089, 4087}
    assert words.generation.sampling.temperature == 0.7
    with Engine.open("demo") as engine:
        assert engine.syntax == words.syntax


def test_a_store_without_text_files_has_none(tmp_path: Path) -> None:
    words = Words(Store.open(write_store(tmp_path / "store")))
    assert words.tokenizer is None and words.template is None
    assert words.syntax == Syntax()
    assert words.stop_ids == frozenset()
