"""Strategies by name: what the command line, `reproduce` and the benchmarks can be asked for."""

import importlib.metadata
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from ._checks import check_known

T = TypeVar("T")


class Registry(Mapping[str, Callable[..., T]], Generic[T]):
    """Functions that make a strategy, by name, in the order that they are listed in.

    Another package adds its own by an entry point of the group `rcig_eqx.` and the registry's name,
    such as `rcig_eqx.methods`; a script adds one by `register`. Raises `ValueError` for a name that
    nobody has registered.
    """

    def __init__(self, name: str, **ready: Callable[..., T]):
        self.name = name
        self._makers = dict(ready)

    def register(self, name: str, make: Callable[..., T]) -> None:
        """Add a function that makes a strategy. `ValueError` if the name is taken."""
        if name in self:
            raise ValueError(f"{self.name} has {name!r} already: choose another name.")
        if not callable(make):
            raise ValueError(
                f"make is {make!r}: pass a function that makes one of the {self.name}."
            )
        self._makers[name] = make

    def _entry_points(self) -> dict[str, importlib.metadata.EntryPoint]:
        found = importlib.metadata.entry_points(group=f"rcig_eqx.{self.name}")
        return {point.name: point for point in found}

    def __getitem__(self, name: str) -> Callable[..., T]:
        if name not in self._makers:
            points = self._entry_points()
            if name not in points:
                raise KeyError(name)
            self._makers[name] = self._loaded(points[name])
        return self._makers[name]

    def _loaded(self, point: importlib.metadata.EntryPoint) -> Callable[..., T]:
        try:
            return point.load()
        except (ImportError, AttributeError) as error:
            raise ImportError(
                f"{point.name} of the {self.name} cannot be loaded from {point.value} ({error}): "
                "mend or remove the package that has this entry point."
            ) from error

    def __iter__(self) -> Iterator[str]:
        yield from dict.fromkeys([*self._makers, *self._entry_points()])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return name in self._makers or name in self._entry_points()

    def find(self, argument: str, name: str) -> Callable[..., T]:
        """What an argument names, or `ValueError` with the nearest names there are."""
        check_known(argument, name, self)
        return self[name]
