"""A formula of tasks, by which rows are ranked: ``click * value``.

It is parsed and never executed: only names of tasks, numbers, ``+ - * / **``, and four functions mean something.
This module needs Python and NumPy only, because portable artifacts score with it.
"""

import ast
import difflib
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SCORE = "score"
"""The column that holds the value of the formula."""
_LONGEST = 500
_FUNCTIONS: dict[str, tuple[Callable[..., Any], int, int]] = {
    "min": (lambda *values: _fold(np.minimum, values), 2, 100),
    "max": (lambda *values: _fold(np.maximum, values), 2, 100),
    "log": (np.log, 1, 1),
    "exp": (np.exp, 1, 1),
}
"""What each function computes, and how few and how many arguments it takes."""
_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
    ast.Pow: np.power,
}
_SIGNS: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.UAdd: np.positive, ast.USub: np.negative}
_ALLOWED = "names of tasks, numbers, + - * / **, min(), max(), log() and exp()"


class FormulaError(ValueError):
    """A text is not a formula, or reads a name that is not a task; the message is one sentence."""


@dataclass(frozen=True)
class Formula:
    """A parsed formula.

    Attributes:
        text: As it was written.
        names: The tasks that it reads.

    Example:
        >>> formula = Formula.parse("click * max(value, 0)", ["click", "value"])
        >>> formula({"click": np.array([0.5, 0.1]), "value": np.array([3.0, -1.0])})
        array([1.5, 0. ], dtype=float32)
    """

    text: str
    names: tuple[str, ...]
    _tree: ast.expr

    @staticmethod
    def parse(text: str, tasks: Collection[str]) -> "Formula":
        """Parse the formula in ``text``.

        Args:
            text: The formula.
            tasks: The names that it may read.

        Raises:
            FormulaError: It is not a formula, or names what is not a task; the nearest task is named.
        """
        if len(text) > _LONGEST:
            raise FormulaError(f"the formula has {len(text)} characters, more than {_LONGEST}")
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise FormulaError(f"{text!r} is not a formula: write {_ALLOWED}") from None
        names = tuple(dict.fromkeys(_names(tree, text, tasks)))
        if not names:
            raise FormulaError(f"{text!r} reads no task: name at least one of {', '.join(tasks)}")
        return Formula(text, names, tree)

    def __call__(self, values: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """(N,) the value of each row; NaN or infinite where it is undefined, such as the logarithm of 0.

        Args:
            values: (N,) predictions, or labels, of each of ``names``.
        """
        with np.errstate(all="ignore"):
            found = _value(self._tree, {name: np.asarray(values[name], np.float64) for name in self.names})
            return np.asarray(found, np.float32)


def _names(node: ast.expr, text: str, tasks: Collection[str]) -> Iterator[str]:
    """The tasks that a part of a formula reads; raises if the part is not of a formula."""
    match node:
        case ast.Name(id=name):
            if name not in tasks:
                nearest = difflib.get_close_matches(name, tasks, n=1, cutoff=0.0)
                raise FormulaError(f"{text!r} reads {name!r}, which is not a task: did you mean {nearest[0]!r}?")
            yield name
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            if not _is_finite(number):
                raise FormulaError(f"{text!r} holds a number that is too large")
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _OPERATORS:
            yield from _names(left, text, tasks)
            yield from _names(right, text, tasks)
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in _SIGNS:
            yield from _names(operand, text, tasks)
        case ast.Call(func=ast.Name(id=function), args=arguments, keywords=[]) if function in _FUNCTIONS:
            _, fewest, most = _FUNCTIONS[function]
            if not fewest <= len(arguments) <= most:
                wanted = "one value" if most == 1 else f"{fewest} values or more"
                raise FormulaError(f"{text!r}: {function}() takes {wanted}, not {len(arguments)}")
            for argument in arguments:
                yield from _names(argument, text, tasks)
        case _:
            shown = ast.get_source_segment(text.strip(), node) or text
            raise FormulaError(f"{text!r} holds {shown!r}, which a formula cannot: write {_ALLOWED}")


def _value(node: ast.expr, values: Mapping[str, NDArray[np.float64]]) -> Any:
    match node:
        case ast.Name(id=name):
            return values[name]
        case ast.Constant(value=int() | float() as number):
            return np.float64(number)
        case ast.BinOp(left=left, op=operator, right=right):
            return _OPERATORS[type(operator)](_value(left, values), _value(right, values))
        case ast.UnaryOp(op=sign, operand=operand):
            return _SIGNS[type(sign)](_value(operand, values))
        case ast.Call(func=ast.Name(id=function), args=arguments):
            return _FUNCTIONS[function][0](*(_value(argument, values) for argument in arguments))
    raise AssertionError(node)


def _fold(function: Callable[[Any, Any], Any], values: tuple[Any, ...]) -> Any:
    result = values[0]
    for value in values[1:]:
        result = function(result, value)
    return result


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(float(number))
    except OverflowError:
        return False
