"""Equinox modules are dataclasses: their signatures are their fields."""

from collections.abc import Iterator

import griffe

ROOTS = {"eqx.Module", "lx.AbstractLinearSolver"}  # of other packages, which are not read


class Modules(griffe.Extension):
    """Gives every module without an `__init__` the one that Equinox gives it."""

    def on_package(self, *, pkg: griffe.Module, **_) -> None:
        for cls in list(_classes(pkg)):
            if _is_module(cls) and "__init__" not in cls.members:
                me = griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)
                fields = {field.name: field for base in [*reversed(cls.mro()), cls]
                          for field in _fields(base)}  # fmt: skip
                init = griffe.Function(
                    "__init__", parameters=griffe.Parameters(me, *fields.values()), parent=cls
                )
                cls.set_member("__init__", init)


def _classes(module: griffe.Module) -> Iterator[griffe.Class]:
    for member in module.members.values():
        if isinstance(member, griffe.Module):
            yield from _classes(member)
        elif isinstance(member, griffe.Class):
            yield member


def _is_module(cls: griffe.Class) -> bool:
    return not ROOTS.isdisjoint(map(str, cls.bases)) or any(map(_is_module, cls.mro()))


def _fields(cls: griffe.Class) -> Iterator[griffe.Parameter]:
    for member in cls.members.values():
        if not isinstance(member, griffe.Attribute) or "property" in member.labels:
            continue
        if member.annotation is None or "AbstractVar" in str(member.annotation):
            continue
        default = member.value
        if isinstance(default, griffe.ExprCall) and str(default.function) == "eqx.field":
            given = {a.name: a.value for a in default.arguments if hasattr(a, "name")}
            default = given.get("default")
        yield griffe.Parameter(
            member.name,
            annotation=member.annotation,
            kind=griffe.ParameterKind.positional_or_keyword,
            default=default,
        )
