"""Damage of every kind, for the tests of what reads files."""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """`content` with one random change: bits flipped, cut off, cut out, put in or written over."""
    place = int(rng.integers(len(content)))
    length = int(rng.integers(1, 64))
    noise = rng.bytes(length)
    kind = rng.integers(6)
    if kind == 0:
        return (
            content[:place]
            + bytes([content[place] ^ (1 << int(rng.integers(8)))])
            + (content[place + 1 :])
        )
    if kind == 1:
        return content[:place]
    if kind == 2:
        return content[:place] + content[place + length :]
    if kind == 3:
        return content[:place] + noise + content[place:]
    if kind == 4:
        return content[:place] + noise + content[place + length :]
    return content + noise


def every_byte(content: bytes) -> Iterator[bytes]:
    """`content` with one byte changed, each in turn: a bit of it, other ones of other bytes."""
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        yield bytes(changed)


# What no field of a card expects, or one may.
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    2**31,
    10**400,
    0.5,
    1e308,
    "",
    "../../etc/passwd",
    "/etc/passwd",
    "a\0b",
    "nan",
    [],
    [[]],
    [-1],
    [2**40, 2**40],
    {},
    {"kind": "pickle"},
)


def mutated(card: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """A card with one random part of it replaced, removed, renamed or doubled."""
    card = copy.deepcopy(card)
    parts = list(_parts(card))
    container, name = parts[rng.integers(len(parts))]
    kind = rng.integers(8)
    if kind == 0:
        del container[name]
    elif kind == 1 and isinstance(container, dict):
        container[VALUES[rng.choice([9, 10, 11, 12])]] = container.pop(name)
    elif kind == 2 and isinstance(container, list):
        container.append(container[name])
    else:
        container[name] = VALUES[rng.integers(len(VALUES))]
    return card


def _parts(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every `(container, key)` below a value."""
    keys = value if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _parts(value[key])


def put(*path, value):
    """A change to a card, or a part of one: the value at a path of names."""

    def change(card, _):
        *parents, last = path
        for name in parents:
            card = card[name]
        card[last] = value

    return change
