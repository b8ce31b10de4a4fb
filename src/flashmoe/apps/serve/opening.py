"""A request before the store: the opening of its turn, or a refusal that names the parameter.

Owns what a request that says nothing of thinking gets, and where in a request that lies which the
library refuses. The library speaks of turns and knows no request: whose fault it was is found by
trying the parts of the turn one by one, which is done only once the whole has been refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from flashmoe.apps.serve.ask import Ask, BadRequest, Places
from flashmoe.engine import Engine
from flashmoe.errors import ContextError, InputError, TemplateError
from flashmoe.turn import JsonSchema, Opening, Plain, Turn


def opened(engine: Engine, ask: Ask, thinking: bool | None = None) -> Opening:
    """The opening of what is asked; ``thinking`` holds where the request leaves it open.

    Raises:
        BadRequest: the store cannot do it.
        BudgetError: the memory has no room for what binds replies.
    """
    turn, places = ask.turn, ask.places
    if isinstance(turn, Plain):
        _check_ids(engine, turn, places)
    elif turn.thinking is None:
        turn = replace(turn, thinking=thinking)
    try:
        return Opening.of(engine, turn)
    except ContextError as error:
        raise BadRequest(str(error), places.prompt, "context_length_exceeded") from None
    except TemplateError as error:
        raise BadRequest(str(error), places.prompt, "invalid_value") from None
    except InputError as error:
        param, code = next(_faults(engine, turn, places), (None, "invalid_value"))
        raise BadRequest(str(error), param, code) from None


def _check_ids(engine: Engine, turn: Plain, places: Places) -> None:
    """Refuse ids that are no word, those that the output matrix is padded with among them."""
    if isinstance(turn.text, str):
        return
    size = min(engine.tokenizer.vocab_size, engine.shape.vocabulary)
    for index, id in enumerate(turn.text):
        if id >= size:
            path = f"{places.prompt}[{index}]"
            raise BadRequest(
                f"{path} is {id}, which is no token of this model: they end at {size - 1}",
                path,
                "invalid_value",
            )


def _faults(engine: Engine, turn: Turn | Plain, places: Places) -> Iterator[tuple[str | None, str]]:
    """Where the parts lie that are refused by themselves, each with a word for programs."""
    if isinstance(turn, Plain):
        yield places.prompt, "invalid_value"
        return
    if turn.thinking and engine.syntax.think_close is None:
        yield places.thinking, "invalid_value"
    if turn.tools and engine.syntax.calls is None:
        yield "tools", "invalid_value"
    for index, tool in enumerate(turn.tools):
        if places.schema is not None and _is_refused(engine, tools=(tool,)):
            yield places.schema.format(index), "invalid_function_parameters"
    names = [tool["function"]["name"] for tool in turn.tools]
    if len(set(names)) < len(names):
        yield "tools", "invalid_value"
    if turn.form is not None and _is_refused(engine, form=turn.form):
        is_schema = isinstance(turn.form, JsonSchema)
        yield places.form, "invalid_json_schema" if is_schema else "invalid_value"


def _is_refused(engine: Engine, **part: Any) -> bool:
    try:
        engine.grammars.guide(**part)
    except InputError:
        return True
    return False
