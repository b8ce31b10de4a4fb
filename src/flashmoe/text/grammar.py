"""Grammars of replies: from what a turn asks for to the guide of its reply.

Owns which grammar binds which part of a reply, and the compiled ones; not how a reply goes through
them (``text.guide``), what calls look like (``text.call_grammar``) or what a schema may say
(``text.schemas``). Invariant: whatever cannot be enforced is refused before a token is drawn.

An answer that is bound begins at once: a model that would open its reasoning of its own accord
(one whose prompt does not open it) does not get to. Where tools are offered and nothing is
demanded, the answer is free up to the mark that opens a call. That mark is a token, or, in
vocabularies that do not have it, text; then all of the answer is read by a grammar.
"""

from __future__ import annotations

import codecs
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import llguidance

from flashmoe.errors import InputError, StoreError
from flashmoe.text import schemas
from flashmoe.text.call_grammar import Tool, call_rules, tools_of
from flashmoe.text.detokenizer import Detokenizer, assembler
from flashmoe.text.forms import Form, JsonSchema, Named, Regex, ToolChoice
from flashmoe.text.guide import (
    Bound,
    Ended,
    Forced,
    Free,
    Guide,
    Stage,
    Thinking,
    Thought,
    all_but,
    only,
)
from flashmoe.text.lark import Lark, json_value, literal, mark, without
from flashmoe.text.patterns import whole
from flashmoe.text.reasons import plain
from flashmoe.text.schemas import Schema, prepared
from flashmoe.text.syntax import Syntax
from flashmoe.text.tokenizer import Tokenizer
from flashmoe.text.vocabulary import BYTES_A_TOKEN, Vocabulary

_KEPT = 16
"""Compiled grammars: agents send the same tools with every request."""

_PATTERN = "the regular expression of the answer"
_SCHEMA = "the schema of the answer"


_LIMITS = llguidance.LLParserLimits(max_lexer_states=25_000, verbose_errors=False)
"""A state takes 1 to 2 kB, and whoever sends a request can make as many as this."""


@dataclass(frozen=True)
class _Asked:
    """What a reply is to be. ``offered`` tools may be called, or must be where ``forced``;
    ``barred``: none may, though the prompt speaks of some."""

    offered: tuple[Tool, ...]
    forced: bool
    barred: bool
    several: bool
    form: Schema | Regex | None

    @property
    def schemas(self) -> Iterator[tuple[str, Schema]]:
        """All schemas, and whose they are."""
        yield from ((tool.where, tool.parameters) for tool in self.offered)
        if isinstance(self.form, dict):
            yield _SCHEMA, self.form


class Grammars:
    """The grammars of one model. Safe to share between threads; making the first guide that needs
    a grammar takes as long as ``Vocabulary`` does."""

    def __init__(
        self, tokenizer: Tokenizer, syntax: Syntax, stop_ids: frozenset[int], vocabulary: int
    ) -> None:
        """``vocabulary`` is the number of tokens that may be drawn, the size of every mask."""
        self._tokenizer, self._syntax = tokenizer, syntax
        self._stop_ids, self._size = stop_ids, vocabulary
        self._lock = threading.Lock()
        self._made: Vocabulary | None = None
        self._compiled: OrderedDict[str, llguidance.LLMatcher] = OrderedDict()
        self._workers = ThreadPoolExecutor(1, thread_name_prefix="flashmoe-grammar")

    @property
    def needed_bytes(self) -> int:
        """Memory that the vocabulary takes, for as long as this lives."""
        return self._size * BYTES_A_TOKEN

    def prepare(self) -> None:
        """Make now what the first guide would make."""
        assert self._vocabulary is not None

    def close(self) -> None:
        """End the thread. Guides that exist cannot go on."""
        self._workers.shutdown(wait=True)

    def guide(
        self,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        tool_choice: ToolChoice = "auto",
        parallel_calls: bool = True,
        thinking: bool = False,
        thinking_budget: int | None = None,
        form: Form | None = None,
        constrained: bool = True,
    ) -> Guide | None:
        """The guide of one reply; None where all of it is free. The fields are ``turn.Turn``'s,
        except that ``thinking`` says whether the reply begins inside reasoning.

        Raises:
            InputError: a tool, schema, pattern or combination that cannot be enforced, by name.
        """
        if thinking_budget is not None and thinking_budget < 0:
            raise InputError(f"thinking_budget is {thinking_budget}; it must be 0 or more")
        asked = self._asked(tools, tool_choice, parallel_calls, form, constrained)
        answer, bound = self._answer(asked)
        if answer is None and thinking_budget is None:
            return None
        begin: Callable[[], Stage] = answer or (lambda: Free(None, {}))
        if self._syntax.think_close is not None:
            reasoning = self._reasoning(begin, asked, thinking_budget, bound=bound)
            if thinking:
                return Guide(reasoning(), self._workers)
            begin = self._opening(begin, reasoning, thinking_budget)
        elif answer is None:
            return None
        return Guide(begin(), self._workers)

    def _asked(
        self,
        tools: Sequence[Mapping[str, Any]],
        choice: ToolChoice,
        several: bool,
        form: Form | None,
        constrained: bool,
    ) -> _Asked:
        named = isinstance(choice, Named)
        forced = named or choice == "required"
        offered = tuple(tools_of(tools)) if constrained or forced else ()
        if isinstance(choice, Named):
            offered = tuple(tool for tool in offered if tool.name == choice.name)
            if not offered:
                raise InputError(f"tool_choice names {choice.name!r}, which is no tool offered")
        if not named and choice not in ("auto", "none", "required"):
            raise InputError(
                f"tool_choice is {choice!r}; it must be auto, none, required or a tool"
            )
        if forced and not offered:
            raise InputError("tool_choice wants a call and no tools are offered")
        if forced and not constrained:
            raise InputError("tool_choice wants a call, which nothing but a grammar can ensure")
        if form is not None and tools and choice != "none" and not constrained:
            raise InputError("calls that are free and an answer that is bound exclude each other")
        if offered and choice != "none" and self._syntax.calls is None:
            raise InputError("the model's chat template has no form of calls that is known here")
        barred = choice == "none" and bool(tools) and self._syntax.calls is not None
        if choice == "none":
            offered = ()
        bound = prepared(form.schema, _SCHEMA) if isinstance(form, JsonSchema) else form
        return _Asked(offered, forced, barred, several and not named, bound)

    def _answer(self, asked: _Asked) -> tuple[Callable[[], Stage] | None, bool]:
        """What begins the answer, None where it is free; and whether a grammar begins it."""
        if asked.forced or asked.form is not None:
            return self._bound(self._whole(asked), asked)
        opens = self._syntax.call_open
        if opens is None or not (asked.offered or asked.barred):
            return None, False
        if opens.id is None:
            lark = Lark()
            return self._bound(lark.grammar(self._spelled(lark, asked)), asked)
        if asked.barred:
            allowed = all_but(frozenset({opens.id}), self._size)
            return lambda: Free(allowed, {}), False
        return self._free_until(opens.id, asked), False

    def _free_until(self, opening: int, asked: _Asked) -> Callable[[], Stage]:
        lark = Lark()
        grammar = lark.grammar(call_rules(lark, asked.offered, self._syntax))
        compiled = self._matcher(grammar, asked)
        stops = only(self._vocabulary.stop_ids, self._size)

        def free() -> Stage:
            return Free(None, {opening: call})

        def call() -> Stage:
            after = free if asked.several else lambda: Ended(stops)
            return Bound("a call", compiled.deep_copy(), self._size, after)

        return free

    def _whole(self, asked: _Asked) -> str:
        """The grammar of an answer that is bound from its first token."""
        lark = Lark()
        parts = []
        if asked.form is not None and not asked.forced:
            parts.append(
                lark.terminal(self._spellable(whole(asked.form.pattern, _PATTERN)))
                if isinstance(asked.form, Regex)
                else lark.rule(json_value(asked.form))
            )
        if asked.offered:
            assert self._syntax.call_open is not None
            opening = mark(self._syntax.call_open)
            call = call_rules(lark, asked.offered, self._syntax)
            gap = f"{literal(self._syntax.gaps.between)} " if self._syntax.gaps.between else ""
            again = f" ({gap}{opening} {call})*" if asked.several else ""
            parts.append(lark.rule(f"{opening} {call}{again}"))
        return lark.grammar(" | ".join(parts))

    def _spellable(self, terminal: str) -> str:
        """A terminal's body without texts that the vocabulary has no tokens for."""
        lacking = self._vocabulary.lacking
        return terminal if lacking is None else f"{terminal} & /[^{lacking}]*/"

    def _spelled(self, lark: Lark, asked: _Asked) -> str:
        """A free answer in which the mark that opens a call is text."""
        assert self._syntax.call_open is not None
        opening = self._syntax.call_open.text
        if asked.barred:
            return lark.terminal(without([opening]))
        any_text = lark.terminal("/(?s:.*)/")
        before = lark.lazy(f"{any_text} {literal(opening)}")
        call = f"{before} {call_rules(lark, asked.offered, self._syntax)}"
        return f"({call})* {any_text}" if asked.several else f"{any_text} | {call}"

    def _reasoning(
        self,
        answer: Callable[[], Stage],
        asked: _Asked,
        budget: int | None,
        *,
        bound: bool,
    ) -> Callable[[], Stage]:
        """What begins reasoning, with the answer behind it."""
        close, opens = self._syntax.think_close, self._syntax.call_open
        assert close is not None
        written = self._ids_of(self._syntax.thought_end)
        space = self._ids_of(self._syntax.thought_end.partition(close.text)[2])
        closing = Forced(tuple(written), self._size, answer)
        after = answer
        if bound and space:  # a free answer may begin as it likes
            after = lambda: Forced(tuple(space), self._size, answer)  # noqa: E731
        ends = {} if close.id is None else {close.id: after}
        barred = self._stop_ids if bound else frozenset()
        if opens is not None and opens.id is not None:  # a call ends reasoning (text.parser)
            opening = opens.id
            if asked.offered:
                ends[opening] = lambda: answer().accept(opening)
            elif bound or asked.barred:
                barred |= {opening}
        allowed = all_but(barred, self._size)
        spelled = close.id is None or (opens is not None and opens.id is None)
        guard = self._guard(after) if bound and spelled else None

        def begin() -> Stage:
            watch = None if close.id is not None else _Watch(self._tokenizer, close.text)
            whole = _Characters(self._tokenizer)
            thought = Thought(allowed, ends, budget, closing, watch, after, whole)
            return Thinking(thought, inner=guard() if guard else None).begun()

        return begin

    def _guard(self, after: Callable[[], Stage]) -> Callable[[], Bound]:
        """Reasoning whose marks are text, before an answer that is bound: a token may not reach
        over the closing tag, and no call begins inside."""
        close, opens = self._syntax.think_close, self._syntax.call_open
        assert close is not None
        lark = Lark()
        spelled = [tag.text for tag in (opens,) if tag is not None and tag.id is None]
        text = lark.terminal(without(spelled) if spelled else "/(?s:.*)/")
        end = f"{text} {mark(close)}"
        compiled = self._matcher(lark.grammar(lark.lazy(end) if close.id is None else end))
        return lambda: Bound("reasoning", compiled.deep_copy(), self._size, after)

    def _opening(
        self,
        answer: Callable[[], Stage],
        reasoning: Callable[[], Stage],
        budget: int | None,
    ) -> Callable[[], Stage]:
        """The answer, where the model may open its reasoning itself and that has a budget."""
        opens = self._syntax.think_open
        if budget is None or opens is None or opens.id is None:
            return answer
        opening = opens.id

        def begin() -> Stage:
            first = answer()
            if isinstance(first, Free):
                return replace(first, opens={**first.opens, opening: reasoning})
            return first

        return begin

    @property
    def _vocabulary(self) -> Vocabulary:
        with self._lock:
            if self._made is None:
                try:
                    self._made = Vocabulary(self._tokenizer, self._stop_ids, self._size)
                except StoreError as error:  # of no matter to replies that nothing binds
                    raise InputError(str(error)) from error
            return self._made

    def _ids_of(self, text: str) -> list[int]:
        return self._vocabulary.ids_of(text)

    def _bound(self, grammar: str, asked: _Asked) -> tuple[Callable[[], Stage], bool]:
        compiled = self._matcher(grammar, asked)
        return lambda: Bound("the answer", compiled.deep_copy(), self._size), True

    def _matcher(self, grammar: str, asked: _Asked | None = None) -> llguidance.LLMatcher:
        """The grammar, compiled and not begun."""
        vocabulary = self._vocabulary
        with self._lock:
            if (known := self._compiled.get(grammar)) is not None:
                self._compiled.move_to_end(grammar)
                return known
        for name, schema in asked.schemas if asked else ():
            _check(name, schema, vocabulary)
        found = llguidance.LLMatcher(vocabulary.backend, grammar, log_level=0, limits=_LIMITS)
        begun = found.deep_copy()
        if not begun.is_error():  # the first mask shows what compiling does not
            begun.compute_bitmask()
        if begun.is_error():
            what = _PATTERN if asked and isinstance(asked.form, Regex) else "what is asked for"
            raise InputError(f"{what}: {plain(begun.get_error())}")
        with self._lock:
            self._compiled[grammar] = found
            while len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
        return found


def _check(name: str, schema: Schema, vocabulary: Vocabulary) -> None:
    """Raises InputError, with the place, for a schema that llguidance cannot enforce. It refuses
    what no value fits as well."""
    for text in schemas.spelled(schema):
        if (letter := vocabulary.unspelled(text)) is not None:
            raise InputError(
                f"{name}: the model's vocabulary has no token for {letter!r}, so that it could not "
                f"write {text[:80]!r}: leave that out"
            )

    def reason(part: Schema) -> str:
        grammar = Lark().grammar(json_value(part))
        return str(llguidance.LLMatcher.validate_grammar(grammar, limits=_LIMITS))

    if found := reason(schema):
        place = schemas.culprit(schema, lambda part: bool(reason(part)))
        inner = found if place == "#" else reason(schemas.within(schema, place[1:]))
        raise InputError(f"{name}, at {place}: {plain(inner)}")


class _Watch:
    """Whether a tag that is text has been written."""

    def __init__(self, tokenizer: Tokenizer, tag: str) -> None:
        self._words = Detokenizer(tokenizer, (tag,))

    def __call__(self, id: int) -> bool:
        self._words.push(id)
        return self._words.stopped is not None


class _Characters:
    """Whether what has been written ends between two characters."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._spelled = tokenizer, assembler(tokenizer.decoder).spelled
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")

    def __call__(self, id: int) -> bool:
        self._bytes.decode(self._spelled(self._tokenizer.token(id) or ""))
        return not self._bytes.getstate()[0]
