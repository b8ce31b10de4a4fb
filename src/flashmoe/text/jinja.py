"""The Jinja that chat templates are written in.

Owns the sandbox, its filters and functions as transformers 5.x defines them, and the bounds on
what a template may make; not messages or tokens. Invariant: whatever a template does, the
caller sees text or a TemplateError.
"""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from flashmoe.errors import TemplateError

_LENGTH_LIMIT = 1 << 26  # characters of a prompt; a million tokens are about 4 million
_FOREIGN = re.compile("[^\\x00-\\x7f\\U000f0000-\\U000fffff]+")
_MISSING = re.compile(r"('[^']*') is undefined|has no (?:attribute |)(?=element|')(.+)")
_POWER_LIMIT = 1 << 10  # bits of a power: no template needs one


def compile_template(source: str) -> jinja2.Template:
    """Raises TemplateError, with the line, for a template that is not Jinja."""
    try:
        return _environment().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(
            f"the chat template has an error in line {error.lineno}: {error.message}; "
            "mend chat_template.jinja"
        ) from error
    except Exception as error:
        reason = error.msg if isinstance(error, SyntaxError) else "it is nested too deep"
        raise TemplateError(
            f"the chat template does not compile ({reason}); mend chat_template.jinja"
        ) from error


def render(template: jinja2.Template, source: str, variables: Mapping[str, Any]) -> str:
    """The whole rendering; TemplateError for whatever goes wrong in it, with the line of
    ``source`` that does."""
    parts: list[str] = []
    length = 0
    try:
        for part in template.generate(variables):
            length += len(part)
            if length > _LENGTH_LIMIT:
                raise TemplateError(f"the chat template writes over {_LENGTH_LIMIT} characters")
            parts.append(part)
    except TemplateError:
        raise
    except _Rejection as error:
        raise TemplateError(f"the chat template rejects the conversation: {error}") from error
    except Exception as error:  # a template can raise anything that Python's operators raise
        raise TemplateError(
            f"the chat template fails on the conversation{_place(error, source)}{_reason(error)}; "
            "give what it expects there, or mend chat_template.jinja"
        ) from error
    return "".join(parts)


class _Rejection(jinja2.TemplateError):
    """A template's own words (``raise_exception``)."""


def _place(error: Exception, source: str) -> str:
    """Where in the template it failed, as far as is known."""
    frames = traceback.walk_tb(error.__traceback__)
    numbers = [line for frame, line in frames if frame.f_code.co_filename == "<template>"]
    lines = source.split("\n")
    if not numbers or numbers[-1] > len(lines):
        return ""
    return f" in line {numbers[-1]} ({lines[numbers[-1] - 1].strip()[:120]})"


def _reason(error: Exception) -> str:
    """What is amiss, where jinja2 can say so of the conversation and not of Python's types."""
    if isinstance(error, jinja2.UndefinedError):
        found = _MISSING.search(str(error))
        return f": {found[1] or found[2]} is not there" if found else ""
    if isinstance(error, jinja2.exceptions.SecurityError):
        return f": {error}" if isinstance(error, _Refusal) else ": templates may not use this"
    if isinstance(error, OverflowError):
        return ": it is too large"
    return ": it calls itself without an end" if isinstance(error, RecursionError) else ""


class _Refusal(jinja2.exceptions.SecurityError):
    """The sandbox's own words."""


class _Sandbox(ImmutableSandboxedEnvironment):
    """Refuses besides what would fill the memory with one operator."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for sequence, times in ((left, right), (right, left)):
                if isinstance(sequence, str | list | tuple) and isinstance(times, int):
                    self._bound(len(sequence) * times > _LENGTH_LIMIT)
        elif isinstance(left, int) and isinstance(right, int):
            self._bound(left.bit_length() * right > _POWER_LIMIT)
        return super().call_binop(context, operator, left, right)

    @staticmethod
    def _bound(exceeded: bool) -> None:
        if exceeded:
            raise _Refusal("a product or power in it is too large")


class _Generation(Extension):
    """``{% generation %}…{% endgeneration %}``: a mark for training; here its body alone."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own attribute

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Namespace(Namespace):
    """``namespace()`` without underscored names, which the sandbox would have to trust."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        # As jinja2's own, so that namespace(self=…) works.
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _refuse_underscore(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


def _refuse_underscore(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise _Refusal(f"it sets {name!r} on a namespace")


def _environment() -> ImmutableSandboxedEnvironment:
    environment = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["namespace"] = _Namespace
    return environment


def _raise(message: str) -> NoReturn:
    raise _Rejection(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without jinja2's escapes for HTML, which models were not trained on.

    ``ensure_ascii`` spares the characters of plane 15, where ``text.template`` takes the private
    character that it must find again.
    """
    text = json.dumps(
        value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys
    )
    return _FOREIGN.sub(lambda found: json.dumps(found[0])[1:-1], text) if ensure_ascii else text
