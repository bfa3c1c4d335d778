"""What a parameterization is, and what is asked of one."""

import abc
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._coreset import Coreset
from .._types import PyTree


class AbstractParameterization(eqx.Module):
    """What is optimized in place of images and labels: ψ, and the set it stands for.

    Subclass it to distill half the pixels, a shared basis, or a generator's inputs. The method's
    gradient goes back through `decode`, which must be pure; the optimizer, the average and a
    rejected step work on ψ.
    """

    @abc.abstractmethod
    def encode(self, coreset: Coreset) -> PyTree:
        """ψ to start from, floating-point arrays in any pytree, for a set of images and labels."""

    @abc.abstractmethod
    def decode(self, psi: PyTree) -> Coreset:
        """The set that ψ stands for: images of the size of the real ones, class after class.

        There may be any number of each class, the same of all.
        """

    def bits(self, psi: PyTree) -> int:
        """The bits that ψ takes where it is stored: images, labels, and all that decodes them.

        By default ψ's floats, as wide as they are. log τ is not counted: the labels take it.
        """
        floats = named(psi).items()
        return sum(8 * x.size * x.dtype.itemsize for name, x in floats if not is_temperature(name))

    def pack(self, psi: PyTree) -> dict[str, np.ndarray]:
        """The arrays that ψ is stored in, by name; by default its own."""
        return {name: np.asarray(leaf) for name, leaf in named(psi).items()}

    def unpack(self, arrays: Mapping[str, np.ndarray], like: PyTree) -> PyTree:
        """The ψ that `pack` stored, which decodes to the same set, bit for bit.

        `like` is a ψ of the same structure, such as `eqx.filter_eval_shape(encode, coreset)`.
        """
        return jax.tree.unflatten(
            jax.tree.structure(like), [jnp.asarray(arrays[name]) for name in named(like)]
        )

    def layout(self, psi: PyTree) -> dict[str, Any] | None:
        """How images and labels come of the arrays of `pack`, in plain values.

        A result with a layout is stored as `pack` has it, and can be read without this class.
        `None`, the default: only `decode` knows, and images and labels are stored as floats.
        """
        return None


def named(psi: PyTree) -> dict[str, Any]:
    """The leaves of ψ by the names that they have in it."""
    leaves = jax.tree_util.tree_leaves_with_path(psi)
    names = (jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves)
    return {name or "psi": leaf for name, (_, leaf) in zip(names, leaves, strict=True)}


def is_temperature(name: str) -> bool:
    """Whether a leaf of this name is log τ."""
    return name.rpartition(".")[2] == "log_temperature"


def check_parameterization(parameterization: AbstractParameterization, start: Coreset) -> Coreset:
    """The structure of the set that ψ stands for; `ValueError` if it does not fit the data."""
    psi = eqx.filter_eval_shape(parameterization.encode, start)
    dtypes = [getattr(x, "dtype", None) for x in jax.tree.leaves(psi)]
    if not all(dtype is not None and jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes):
        raise ValueError(
            "encode must return floating-point arrays alone: keep all else in fields of the "
            "parameterization."
        )
    decoded = eqx.filter_eval_shape(parameterization.decode, psi)
    if not isinstance(decoded, Coreset):
        raise ValueError(f"decode returned a {type(decoded).__name__}: it must return a Coreset.")
    n = decoded.images.shape[:1]
    wanted = (n + start.images.shape[1:], n + start.labels.shape[1:], (), start.flip)
    got = (
        decoded.images.shape,
        decoded.labels.shape,
        decoded.log_temperature.shape,
        decoded.flip,
    )
    if got != wanted:
        raise ValueError(
            f"decode made images, labels, log_temperature and flip of {got}, where these data need "
            f"{wanted}: change the images of the coreset that encode was given, as with "
            "equinox.tree_at, and leave the rest."
        )
    if n != start.images.shape[:1] and n[0] % decoded.num_classes:
        raise ValueError(
            f"decode made {decoded.images.shape[0]} images of {decoded.num_classes} classes: make "
            "as many of each, class after class."
        )
    right, made = ({str(x.dtype) for x in jax.tree.leaves(c)} for c in (start, decoded))
    if not made <= right:
        raise ValueError(f"decode made arrays of {sorted(made)}: make them {min(right)}.")
    return decoded
