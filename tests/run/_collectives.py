"""What crosses between devices, counted from the text of a compiled program."""

import math
import re

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(r"%([\w.\-]+)")
_COLLECTIVE = re.compile(
    r"= (.*?) (?:all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)
_SHAPE = re.compile(r"\b(pred|bf16|[suf]\d+)\[([\d,]*)\]")


def collective_bytes(program: str) -> tuple[int, int]:
    """Bytes of what a compiled program's collectives give each device, counted from its text.

    **Arguments:** XLA's text of it, such as `jax.jit(f).lower(x).compile().as_text()`.

    **Returns:** the bytes of one run, and those of each pass of its loops' bodies together.
    """
    sizes: dict[str, int] = {}
    calls: dict[str, set[str]] = {}
    name = entry = ""
    for line in program.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            name = header[2]
            entry = name if header[1] else entry
            sizes[name], calls[name] = 0, set()
        elif name:
            sizes[name] += sum(map(_bytes, _COLLECTIVE.findall(line)))
            if " while(" not in line:
                calls[name] |= set(_CALLED.findall(line))
    reached, todo = set(), {entry}
    while todo:  # all that runs outside loops
        reached |= todo
        todo = set().union(*(calls[name] for name in todo)) & sizes.keys() - reached
    once = sum(sizes[name] for name in reached)
    return once, sum(sizes.values()) - once


def _bytes(shapes: str) -> int:
    """Of HLO shapes such as `(f32[3,4]{1,0}, pred[])`."""
    total = 0
    for kind, dims in _SHAPE.findall(shapes):
        width = 1 if kind == "pred" else int(re.sub(r"\D", "", kind)) // 8
        total += width * math.prod(int(d) for d in dims.split(",") if d)
    return total
