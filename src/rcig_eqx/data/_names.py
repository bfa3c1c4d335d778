"""Class names as everything here compares them: text, one form of each letter, no two alike."""

import reprlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np


def class_names_of(names: Any, what: str = "class_names") -> tuple[str, ...]:
    """The names as a tuple of text, in Unicode's composed form (NFC).

    `names` is a sequence of text or of UTF-8 bytes, one per class, or a mapping between the names
    and the class numbers from 0, in either direction. Raises `ValueError` for a set, which has no
    order, for one text, for a name that is not text or is empty, for no name, and for two names
    that are the same in NFC. `what` is the argument's name in messages.
    """
    if isinstance(names, Mapping):
        names = _in_order(names, what)
    if isinstance(names, np.ndarray):
        names = names.tolist()
    if isinstance(names, str | bytes | Set) or not isinstance(names, Iterable):
        raise ValueError(
            f"{what} is {reprlib.repr(names)} ({type(names).__name__}): pass a list of text, one "
            "name per class in the order of the class numbers."
        )
    composed = tuple(text_of(name, what) for name in names)
    if not composed or "" in composed:
        raise ValueError(f"{what} must hold at least one name and no empty one.")
    twice = sorted(name for name, count in Counter(composed).items() if count > 1)
    if twice:
        raise ValueError(f"{what} holds duplicates: {', '.join(twice)}. Rename them.")
    return composed


def _in_order(names: Mapping[Any, Any], what: str) -> list[Any]:
    """The names of a mapping from or to class numbers, ordered by class number."""
    pairs = list(names.items())
    if all(isinstance(name, str | bytes) for name, _ in pairs):
        pairs = [(number, name) for name, number in pairs]
    numbered = {number: name for number, name in pairs if _is_number(number)}
    if len(numbered) != len(pairs) or sorted(numbered) != list(range(len(pairs))):
        raise ValueError(
            f"{what} is {reprlib.repr(dict(names))}, which does not number its classes from 0: "
            "pass a list of text, one name per class."
        )
    return [numbered[number] for number in range(len(pairs))]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def text_of(name: Any, what: str) -> str:
    """The name as text in NFC. Raises `ValueError` for what is neither text nor UTF-8."""
    if isinstance(name, bytes):
        try:
            return name.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{what} holds {name!r}, which is not UTF-8: pass text.") from error
    if not isinstance(name, str):
        raise ValueError(
            f"{what} holds {name!r} ({type(name).__name__}): pass text, as in "
            "[str(name) for name in names]."
        )
    return nfc(name)


def nfc(name: str) -> str:
    """A name in Unicode's composed form, in which names are compared."""
    return unicodedata.normalize("NFC", name)
