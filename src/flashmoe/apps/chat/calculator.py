"""A calculator for the model: arithmetic by its syntax tree, never by running it.

Owns which operations there are and how large numbers may become. Invariant: whatever the
expression, the answer or the refusal comes within a fraction of a second.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from flashmoe.apps.chat.tools import Refusal, Tool, text_of

EXPRESSION_CHARACTERS = 1000
WHOLE_BITS = 4096
"""The largest whole number on the way, some 1,200 digits: more would take time to multiply."""

FACTORIAL_MOST = 400
DIGITS = 15
"""Of a fraction: what a float64 knows, so that 0.1 + 0.2 is 0.3."""

Number = int | float

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
_CONSTANTS = {"pi": math.pi, "e": math.e, "tau": math.tau}


def _factorial(number: Number) -> int:
    if not isinstance(number, int) or not 0 <= number <= FACTORIAL_MOST:
        raise Refusal(f"factorial takes a whole number from 0 to {FACTORIAL_MOST}")
    return math.factorial(number)


def _root(number: Number) -> Number:
    """Exact where it is whole."""
    if isinstance(number, int) and number >= 0 and math.isqrt(number) ** 2 == number:
        return math.isqrt(number)
    return math.sqrt(number)


def _rounded(number: Number, digits: Number = 0) -> Number:
    if not isinstance(digits, int) or abs(digits) > DIGITS:
        raise Refusal(f"round takes a whole number of digits, {DIGITS} at most")
    return round(number, digits) if digits else round(number)


_FUNCTIONS: dict[str, Callable[..., Number]] = {
    **{
        name: getattr(math, name)
        for name in ("sin", "cos", "tan", "asin", "acos", "atan", "exp", "log", "log2", "log10")
    },
    **{name: getattr(math, name) for name in ("floor", "ceil", "degrees", "radians", "gcd")},
    "sqrt": _root,
    "factorial": _factorial,
    "abs": abs,
    "round": _rounded,
    "min": min,
    "max": max,
}


def calculate(expression: str) -> str:
    """The value of an arithmetic expression, as text.

    Raises:
        Refusal: it is no such expression, has no value, or numbers become too large.
    """
    if len(expression) > EXPRESSION_CHARACTERS:
        raise Refusal(f"the expression is longer than {EXPRESSION_CHARACTERS} characters")
    if not expression.strip():
        raise Refusal("there is nothing to calculate: the expression is empty")
    try:
        tree = ast.parse(expression.strip().replace("^", "**"), mode="eval")
        return _written(_value(tree.body))
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        told = str(error)
        if isinstance(error, SyntaxError):
            told = "it is no expression of numbers, signs and functions"
        elif isinstance(error, RecursionError):
            told = "it is nested too deeply"
        raise Refusal(f"{expression!r} cannot be calculated: {told}") from error
    except ZeroDivisionError as error:
        raise Refusal(f"{expression!r} divides by zero") from error
    except (OverflowError, TypeError) as error:
        raise Refusal(f"{expression!r} cannot be calculated: {error}") from error


def _value(node: ast.expr) -> Number:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return _bounded(number)
        case ast.UnaryOp(op=sign, operand=inner) if type(sign) in _UNARY:
            return _bounded(_UNARY[type(sign)](_value(inner)))
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _power(_value(left), _value(right))
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _BINARY:
            return _bounded(_BINARY[type(sign)](_value(left), _value(right)))
        case ast.Name(id=name) if name in _CONSTANTS:
            return _CONSTANTS[name]
        case ast.Call(func=ast.Name(id=name), args=given, keywords=[]) if name in _FUNCTIONS:
            return _bounded(_FUNCTIONS[name](*map(_value, given)))
    raise Refusal(f"{ast.unparse(node)!r} is not arithmetic; there are {_offered()}")


def _offered() -> str:
    return f"+ - * / // % **, {', '.join(_CONSTANTS)}, {', '.join(sorted(_FUNCTIONS))}"


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(base, int) and isinstance(exponent, int) and abs(base) > 1:
        bits = abs(exponent) * (abs(base).bit_length() - 1)
        if bits > WHOLE_BITS:  # before it is computed
            raise Refusal(f"{base} ** {exponent} has too many digits")
    result = base**exponent
    if isinstance(result, complex):
        raise Refusal(f"{base} ** {exponent} is not a real number")
    return _bounded(result)


def _bounded(number: Number) -> Number:
    if isinstance(number, int) and number.bit_length() > WHOLE_BITS:
        raise Refusal("a number has too many digits")
    return number


def _written(number: Number) -> str:
    return str(number) if isinstance(number, int) else format(number, f".{DIGITS}g")


def _use(arguments: Mapping[str, Any]) -> str:
    return calculate(text_of(arguments, "expression"))


CALCULATOR = Tool.of(
    "calculator",
    f"Calculate an arithmetic expression, exactly where it is whole. There are {_offered()}.",
    {"expression": {"type": "string", "description": "such as (3 + 4) * sqrt(2)"}},
    use=_use,
)
