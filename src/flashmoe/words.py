"""The words of a store: its tokenizer, chat template, and defaults of generation.

Owns which texts of a store these come from; not what they mean (``text``, ``generation``).
Invariant: all of it is read before the memory is planned, since what it weighs counts.
"""

from __future__ import annotations

import logging

from flashmoe.errors import InputError
from flashmoe.generation import Generation
from flashmoe.store.reader import Store
from flashmoe.text.grammar import Grammars
from flashmoe.text.syntax import Syntax
from flashmoe.text.template import ChatTemplate
from flashmoe.text.tokenizer import Tokenizer

_log = logging.getLogger(__name__)


class Words:
    """Without a tokenizer there is no template, no syntax and no grammar. What grammars need of the
    vocabulary is made here where ``grammars`` asks for it, else with the first use.

    Raises StoreError for a malformed file, TemplateError for a template that does not compile.
    """

    def __init__(self, store: Store, *, grammars: bool = False) -> None:
        definition, config = store.text("tokenizer.json"), store.text("tokenizer_config.json")
        self.tokenizer: Tokenizer | None = None
        if definition is not None:
            self.tokenizer = Tokenizer.parse(definition, config, store.path)
        generation = store.text("generation_config.json")
        self.generation = Generation.from_json(
            generation, str(store.path / "generation_config.json")
        )
        source = store.text("chat_template.jinja")
        self.template = self._template(source)
        self.syntax = Syntax.of(source, self.tokenizer) if self.tokenizer else Syntax()
        own = self.tokenizer.stop_ids if self.tokenizer else frozenset()
        self.stop_ids = self.generation.stop_ids | own
        self.grammars: Grammars | None = None
        if self.tokenizer is not None:
            size = min(self.tokenizer.vocab_size, store.shape.vocabulary)
            self.grammars = Grammars(self.tokenizer, self.syntax, self.stop_ids, size)
            if grammars:
                self._prepare(self.grammars)
        self.grammars_counted = grammars
        """Whether the plan or the ledger knows what grammars weigh."""

    @staticmethod
    def _prepare(grammars: Grammars) -> None:
        try:
            grammars.prepare()
        except InputError as error:  # replies that nothing binds come all the same
            _log.warning("%s", error)

    def close(self) -> None:
        """End what works on words in the background."""
        if self.grammars is not None:
            self.grammars.close()

    def _template(self, source: str | None) -> ChatTemplate | None:
        if source is None or self.tokenizer is None:
            return None
        tokenizer = self.tokenizer
        return ChatTemplate(
            source,
            bos_token=tokenizer.bos_token,
            eos_token=tokenizer.eos_token,
            markup=tokenizer.markup,
        )
