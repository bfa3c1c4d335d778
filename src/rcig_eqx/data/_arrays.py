"""Arrays as users have them, brought to what numpy and JAX both compute with."""

from typing import Any

import numpy as np
from jaxtyping import Integer, Shaped

from ._names import class_names_of, text_of


def plain_array(value: Any, what: str) -> Any:
    """`value`, in the machine's byte order and without a mask if it is a numpy array.

    The same object if there is nothing to change. Raises `ValueError` for masked entries and for
    floats of more than 64 bits, which JAX does not have. `what` is the argument's name.
    """
    if not isinstance(value, np.ndarray):
        return value
    if isinstance(value, np.ma.MaskedArray):
        if np.ma.is_masked(value):
            raise ValueError(
                f"{what} has {np.ma.count_masked(value)} masked entries: leave these images out, "
                f"or fill them with {what}.filled(...)."
            )
        value = value.data
    if value.dtype.kind in "fc" and value.dtype.itemsize > (8 if value.dtype.kind == "f" else 16):
        raise ValueError(f"{what} is {value.dtype}: pass {what}.astype(np.float32).")
    if not value.dtype.isnative:
        value = np.asarray(value).astype(value.dtype.newbyteorder("="))
    return value


def is_tensor(value: Any) -> bool:
    """Whether it is a tensor of PyTorch, which is not imported here."""
    return any(
        kind.__name__ == "Tensor" and kind.__module__.partition(".")[0] == "torch"
        for kind in type(value).__mro__
    )


def array_of(value: Any) -> Any:
    """The numpy array of a tensor, as it lies there; anything else as it is."""
    if not is_tensor(value):
        return value
    tensor = value.detach().cpu()
    return (tensor.float() if "bfloat16" in str(tensor.dtype) else tensor).numpy()


def images_of(value: Any) -> Any:
    """A batch of images of a tensor, [n c h w] or [n h w], as the array [n h w c] of it; anything
    else as it is."""
    images = array_of(value)
    if images is value:
        return value
    if images.ndim == 3 and images.dtype == np.uint8:
        return images[..., None]
    if images.ndim != 4 or (images.shape[3] in (1, 3) and images.shape[1] not in (1, 3)):
        return images
    return np.ascontiguousarray(np.moveaxis(images, 1, -1))


def numbered(
    labels: Shaped[np.ndarray, "..."], class_names: tuple[str, ...] | None
) -> tuple[Shaped[np.ndarray, "..."], tuple[str, ...] | None]:
    """Labels that are text as class numbers, and the names of the classes.

    The classes are `class_names`, or the sorted distinct labels if `None`. Labels that are no text
    are returned as they are. Raises `ValueError` for a label that is not among `class_names`.
    """
    if labels.dtype.kind not in "SUTO":
        return labels, class_names
    flat = labels.ravel().tolist()
    if not flat or not all(isinstance(x, str | bytes) for x in flat):
        return labels, class_names
    texts = [text_of(label, "labels") for label in flat]
    names = class_names_of(sorted(set(texts)), "labels") if class_names is None else class_names
    number = {name: i for i, name in enumerate(names)}
    unknown = sorted(set(texts) - number.keys())
    if unknown:
        raise ValueError(
            f"labels holds {unknown[0]!r}, which is none of the class_names: name every class, or "
            "leave class_names out."
        )
    return np.array([number[x] for x in texts], np.int32).reshape(labels.shape), names


def row_numbers(indices: Any) -> Integer[np.ndarray, " m"]:
    """Indices as an array of integers. `ValueError` for a mask, fractions or more dimensions."""
    numbers = np.asarray(indices)
    if not numbers.size:
        numbers = numbers.astype(np.int64)
    if numbers.dtype.kind not in "iu" or numbers.ndim != 1:
        mask = " np.flatnonzero(mask) gives those of a mask." if numbers.dtype.kind == "b" else ""
        raise ValueError(
            f"indices is {numbers.dtype}{list(numbers.shape)}: pass a list of whole numbers.{mask}"
        )
    return numbers
