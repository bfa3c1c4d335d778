"""What a strategy is, in two hashes that no compiler has a say in: its values and its code.

A strategy may be or hold any function of a user's, which has no name to go by. The **values** are
all that it carries: fields, arguments bound by `functools.partial`, defaults, and what its
functions have closed over, such as the learning rate in an optax optimizer. The **code** is the
source of functions and classes without comments and layout, and by name alone of those that come
with a library, whose version says the rest.
"""

import ast
import dataclasses
import functools
import hashlib
import inspect
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer

LIBRARIES = ("rcig-eqx", "jax", "jaxlib", "equinox", "optax", "lineax", "grain", "numpy")
_CHECKERS = {"jaxtyping", "beartype"}  # what their wrappers hold is no one's
_MODULES = {name.replace("-", "_") for name in LIBRARIES} | _CHECKERS | sys.stdlib_module_names

_PLAIN = (type(None), bool, int, float, complex, str, bytes, np.dtype, type(Ellipsis))


def identity_of(strategy: Any) -> dict[str, Any]:
    """`values` and `code`, each a short hash, and the `names` of the user's own functions."""
    seen = _Seen()
    seen(strategy)
    return {"values": seen.values.hexdigest()[:16], "code": seen.code.hexdigest()[:16]} | {
        "names": sorted(seen.names)
    }


def numbers_of(leaf: Any) -> Any:
    """An array's numbers; of random keys the integers behind them."""
    return jr.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


class _Seen:
    """A walk through an object, and the two hashes so far. Nothing is asked for its `repr`."""

    def __init__(self, aside: dict[int, Any] | None = None):
        self.values, self.code = hashlib.sha256(), hashlib.sha256()
        self.names: set[str] = set()
        # What has been walked, kept alive so that its id is its own; aside, see `_aside`.
        self._known: dict[int, Any] = {} if aside is None else aside
        self._known_aside: dict[int, Any] = {} if aside is None else aside

    def __call__(self, value: Any) -> None:
        if isinstance(value, _PLAIN):
            self.values.update(f"{value!r} ".encode())
        elif isinstance(value, Tracer):
            self._called(type(value))
        elif eqx.is_array(value) or isinstance(value, np.ndarray | np.generic):
            array = np.asarray(numbers_of(value))
            self.values.update(f"{array.dtype} {array.shape} ".encode())
            self.values.update(array.tobytes())
        elif id(value) not in self._known:
            self._known[id(value)] = value
            for part in self._parts(value):
                self(part)

    def _parts(self, value: Any) -> Iterator[Any]:
        """What is to be looked at in place of a value; its own code is added here."""
        if isinstance(value, types.ModuleType):
            self._called(value)
        elif isinstance(value, Mapping):
            yield from (part for pair in sorted(value.items(), key=_name_first) for part in pair)
        elif isinstance(value, set | frozenset):
            yield from sorted(value, key=str) if all(isinstance(x, _PLAIN) for x in value) else ()
        elif isinstance(value, tuple | list):
            yield from value
        elif isinstance(value, functools.partial):
            yield from (value.func, value.args, value.keywords)
        elif isinstance(value, types.MethodType):
            yield from (value.__func__, value.__self__)
        elif isinstance(value, types.FunctionType):
            yield from self._function(value)
        elif isinstance(value, type):
            self._source(value)
        elif dataclasses.is_dataclass(value):
            yield type(value)
            yield from (getattr(value, f.name, None) for f in dataclasses.fields(value))
        elif (inner := getattr(value, "__wrapped__", None)) is not None:  # jitted, cached
            yield inner
        elif callable(value) and hasattr(value, "__name__"):  # compiled, as math.sin
            self._called(value)
        else:
            yield type(value)
            if _is_own(type(value)):  # it may count calls, or keep what it has made
                self._aside(vars(value) if hasattr(value, "__dict__") else ())

    def _function(self, function: types.FunctionType) -> Iterator[Any]:
        if _package(function) in _CHECKERS:
            yield inspect.unwrap(function)
            return
        self._source(function)
        yield from (x.cell_contents for x in function.__closure__ or () if _is_filled(x))
        yield from (function.__defaults__, function.__kwdefaults__)
        if _is_own(function):
            names = sorted(_global_names(function.__code__) & function.__globals__.keys())
            there = [function.__globals__[name] for name in names]
            mutable = (list, dict, set, types.ModuleType)
            self._aside([x for x in there if not isinstance(x, mutable)])

    def _aside(self, value: Any) -> None:
        """Count values as code: those of a module, and of an object that is free to change."""
        inside = _Seen(self._known_aside)
        inside(value)
        self.names |= inside.names
        self.code.update(inside.values.digest() + inside.code.digest())

    def _source(self, thing: Any) -> None:
        if not _is_own(thing):
            return self._called(thing)
        self.names.add(thing.__qualname__)
        try:
            text = _text(thing)
        except (OSError, TypeError, SyntaxError):  # typed into an interpreter, or of `exec`
            text = thing.__qualname__
        self.code.update(text.encode())

    def _called(self, thing: Any) -> None:
        self.code.update(getattr(thing, "__qualname__", thing.__name__).encode())


def _package(thing: Any) -> str:
    """Where a function or class was written, whatever it was made to look like since."""
    name = getattr(thing, "__module__", None)
    if isinstance(thing, types.FunctionType):
        name = thing.__globals__.get("__name__")
    return str(name).partition(".")[0]


def _is_own(thing: Any) -> bool:
    """Whether a function or class is a user's, and no part of a library whose version is known."""
    return _package(thing) not in _MODULES


def _text(thing: Any) -> str:
    """The source of a function or class, as the parser understands it."""
    lines, start = inspect.findsource(thing)
    kinds, first, places = (ast.ClassDef,), start + 1, set()
    if isinstance(thing, types.FunctionType):
        kinds, first = (ast.FunctionDef, ast.Lambda), thing.__code__.co_firstlineno
        places = set(thing.__code__.co_positions())
    nodes = ast.walk(ast.parse("".join(lines)))
    found = [node for node in nodes if isinstance(node, kinds) and _first_line(node) == first]
    if len(found) > 1:  # several lambdas begin in one line
        found = [node for node in found if _place_of_result(node) in places] or found
    return "\n".join(map(ast.unparse, found)) or thing.__qualname__


def _first_line(node: Any) -> int:
    return min([node.lineno, *(x.lineno for x in getattr(node, "decorator_list", ()))])


def _place_of_result(node: Any) -> tuple[int, int | None, int, int | None] | None:
    if not isinstance(node, ast.Lambda):
        return None
    body = node.body
    return body.lineno, body.end_lineno, body.col_offset, body.end_col_offset


def _global_names(code: types.CodeType) -> set[str]:
    inner = (x for x in code.co_consts if isinstance(x, types.CodeType))
    return set(code.co_names).union(*map(_global_names, inner))


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # a name that is given its value later
        return False


def _name_first(pair: tuple[Any, Any]) -> str:
    return str(pair[0]) if isinstance(pair[0], _PLAIN) else ""
