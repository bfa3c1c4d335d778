"""What a run was made of, in plain values for people and files to read."""

import importlib.metadata
from typing import Any

import equinox as eqx
import jax


def describe(strategy: eqx.Module) -> dict[str, Any]:
    """A strategy in plain values, for people to read."""

    def plain(value: Any) -> Any:
        if isinstance(value, int | float | str | bool | None):
            return value
        if isinstance(value, jax.Array) and value.ndim == 0:
            return value.item()
        if isinstance(value, jax.Array):
            return f"{value.dtype}{list(value.shape)}"
        if isinstance(value, eqx.Module):
            return describe(value)
        return getattr(value, "__qualname__", type(value).__qualname__)

    values = {name: plain(value) for name, value in vars(strategy).items()}
    return {"name": type(strategy).__name__, **values}


def described(strategy: Any) -> str:
    """A strategy in words: the repr of one of ours, the qualified name of a user's function."""
    if isinstance(strategy, eqx.Module):
        return eqx.tree_pformat(strategy, width=10**6)
    function = getattr(strategy, "update", strategy)
    return getattr(function, "__qualname__", type(function).__qualname__)


def versions() -> dict[str, str]:
    """The versions of what computes."""
    names = ("rcig-eqx", "jax", "equinox", "optax", "lineax")
    return {name: importlib.metadata.version(name) for name in names}
