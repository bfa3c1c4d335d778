"""Random changes to images during training or distilling, by the field's strategy strings."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ._checks import ArgumentError, check_flags, check_known

OPERATIONS = ("flip", "color", "crop", "rotate", "scale", "translate", "cutout")


Augmentation = Callable[..., Array]
"""A function `(images [n h w c], *, key) -> images [n h w c]`."""


class Augment(eqx.Module):
    """The transformations of differentiable Siamese augmentation (Zhao and Bilen, 2021).

    `Augment("flip_color_crop")(images, key=key)`. Each image is changed in its own way; what comes
    into the frame from outside is 0, which of preprocessed images is their mean. Pure, on the
    device, the same for the same key.

    - `strategy`: operations joined by `_`, of those below; the paper evaluates with
      `flip_color_crop_rotate_translate_cutout` in color and with the last four in gray
      (appendix C), which is `augment=True`.
    - `mode`: `"one"` of them, drawn anew for every batch, as the evaluations of this field do, or
      `"all"` at once.
    - `flip`: mirrors left to right with this probability.
    - `brightness`, `saturation`, `contrast`, for `color`: adds up to half of it either way; makes
      each pixel's distance to its gray 0 to so many times as large; each image's distance to its
      mean `contrast` to 1 + `contrast` times.
    - `crop`: moves by whole pixels, up to this part of each side.
    - `rotate`: turns by up to so many degrees either way.
    - `scale`: shrinks or stretches each side by up to this factor.
    - `translate`: moves by up to this part of each side, in fractions of a pixel.
    - `cutout`: blanks a rectangle of this part of each side, centered anywhere in the frame.
    - `siamese`: changes all images of a call in the same way. Two calls with the same key, as of a
      distilled set and of real images, then make the same change, as the paper does.

    The names and sizes are those of the reference of that paper, but for `translate`, which it
    has not. Raises `ValueError` for an unknown operation, and names the nearest.
    """

    strategy: str = eqx.field(static=True)
    mode: Literal["one", "all"] = eqx.field(static=True, default="one")
    flip: float = eqx.field(static=True, default=0.5, kw_only=True)
    brightness: float = eqx.field(static=True, default=1.0, kw_only=True)
    saturation: float = eqx.field(static=True, default=2.0, kw_only=True)
    contrast: float = eqx.field(static=True, default=0.5, kw_only=True)
    crop: float = eqx.field(static=True, default=0.125, kw_only=True)
    rotate: float = eqx.field(static=True, default=15.0, kw_only=True)
    scale: float = eqx.field(static=True, default=1.2, kw_only=True)
    translate: float = eqx.field(static=True, default=0.125, kw_only=True)
    cutout: float = eqx.field(static=True, default=0.5, kw_only=True)
    siamese: bool = eqx.field(static=True, default=False, kw_only=True)

    def __check_init__(self) -> None:
        for name in self.operations:
            check_known("augmentation", name, OPERATIONS)
            if self.operations.count(name) > 1:
                raise ValueError(f"strategy {self.strategy!r} has {name!r} twice: name it once.")
        check_known("mode", self.mode, ("one", "all"))
        check_flags(siamese=self.siamese)

    @property
    def operations(self) -> tuple[str, ...]:
        """The names in the strategy."""
        return tuple(self.strategy.split("_"))

    def __call__(
        self, images: Float[Array, "n h w c"], *, key: PRNGKeyArray
    ) -> Float[Array, "n h w c"]:
        """The images, changed at random. `ValueError` for inputs that are no images."""
        if images.ndim != 4:
            raise _no_images(images.shape[1:])
        choice, key = jr.split(key)
        count = len(self.operations)
        chosen = jnp.ones(count, bool)
        if self.mode == "one":
            chosen = jnp.arange(count) == jr.randint(choice, (), 0, count)
        on = dict(zip(self.operations, chosen, strict=True))
        if self.siamese:
            return jax.vmap(lambda image: self._change(image, on, key))(images)
        keys = jr.split(key, len(images))
        return jax.vmap(lambda image, key: self._change(image, on, key))(images, keys)

    def _change(
        self, image: Float[Array, "h w c"], on: dict[str, Bool[Array, ""]], key: PRNGKeyArray
    ) -> Float[Array, "h w c"]:
        """One image by the operations that are on; one that is not has its neutral amount."""
        keys = dict(zip(OPERATIONS, jr.split(key, len(OPERATIONS)), strict=True))
        if "color" in on:
            image = jnp.where(on["color"], self._colored(image, keys["color"]), image)
        if not set(on) <= {"color", "cutout"}:
            image = self._moved(image, on, keys)
        if "cutout" in on:
            image = jnp.where(on["cutout"] & self._hole(image, keys["cutout"]), 0.0, image)
        return image

    def _colored(self, image: Float[Array, "h w c"], key: PRNGKeyArray) -> Float[Array, "h w c"]:
        brightness, saturation, contrast = jr.uniform(key, (3,), image.dtype)
        image = image + (brightness - 0.5) * self.brightness
        gray = jnp.mean(image, axis=2, keepdims=True)
        image = gray + (image - gray) * (saturation * self.saturation)
        mean = jnp.mean(image)
        return mean + (image - mean) * (contrast + self.contrast)

    def _moved(
        self,
        image: Float[Array, "h w c"],
        on: dict[str, Bool[Array, ""]],
        keys: Mapping[Any, PRNGKeyArray],
    ) -> Float[Array, "h w c"]:
        """Flip, scale, rotation and shift as one map of coordinates, interpolated once."""
        sides = jnp.array(image.shape[:2], image.dtype)

        def uniform(key: PRNGKeyArray, shape: tuple[int, ...]) -> Array:
            return jr.uniform(key, shape, image.dtype, -1.0, 1.0)

        def whole(key: PRNGKeyArray, shape: tuple[int, ...]) -> Array:
            pixels = jnp.round(sides * self.crop).astype(int)
            return jr.randint(key, shape, -pixels, pixels + 1).astype(image.dtype)

        def flipped(key: PRNGKeyArray, shape: tuple[int, ...]) -> Array:
            return jnp.where(jr.bernoulli(key, self.flip, shape), -1.0, 1.0)

        def amount(name: str, draw: Any, neutral: float, shape: tuple[int, ...] = ()) -> Array:
            plain = jnp.full(shape, neutral, image.dtype)
            return jnp.where(on[name], draw(keys[name], shape), plain) if name in on else plain

        angle = jnp.deg2rad(amount("rotate", uniform, 0.0) * self.rotate)
        scale = self.scale ** amount("scale", uniform, 0.0, (2,))
        shift = amount("crop", whole, 0.0, (2,))
        shift = shift + amount("translate", uniform, 0.0, (2,)) * sides * self.translate
        mirror = amount("flip", flipped, 1.0)

        center = (sides - 1) / 2
        along = [jnp.arange(side, dtype=image.dtype) for side in image.shape[:2]]
        rows, columns = jnp.meshgrid(*along, indexing="ij")
        y, x = rows - center[0], columns - center[1]
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        y, x = scale[0] * (cos * y - sin * x), scale[1] * (sin * y + cos * x)
        at = [y + center[0] + shift[0], mirror * (x + shift[1]) + center[1]]
        sample = functools.partial(map_coordinates, coordinates=at, order=1, mode="constant")
        return jax.vmap(sample, in_axes=2, out_axes=2)(image)

    def _hole(self, image: Float[Array, "h w c"], key: PRNGKeyArray) -> Bool[Array, "h w 1"]:
        """True in a rectangle around a random pixel."""
        inside = jnp.ones((), bool)
        for axis, (side, k) in enumerate(zip(image.shape[:2], jr.split(key), strict=True)):
            size = round(side * self.cutout)
            first = jr.randint(k, (), 0, side) - size // 2
            at = jnp.arange(side)
            along = (at >= first) & (at < first + size)
            inside = inside & along.reshape([-1 if i == axis else 1 for i in range(3)])
        return inside


def paper_strategy(channels: int) -> str:
    """What the paper evaluates with (appendix C): six operations in color, four in gray."""
    gray = "crop_rotate_translate_cutout"
    return gray if channels == 1 else f"flip_color_{gray}"


def as_augmentation(
    augment: bool | str | Augmentation | None, shape: tuple[int, ...]
) -> Augmentation | None:
    """What `augment=` of `evaluate` or a `Recipe` says, as a function; `None` for none."""
    if augment is None or augment is False:
        return None
    if len(shape) != 3 and (augment is True or isinstance(augment, str | Augment)):
        raise _no_images(shape)
    if augment is True:
        augment = paper_strategy(shape[2])
    if isinstance(augment, str):
        return Augment(augment)
    check_kind(augment)
    return augment


def check_kind(augment: Any) -> None:
    """Raise `ValueError` for what says no augmentation, or an unknown operation."""
    if isinstance(augment, str):
        Augment(augment)
    elif not (augment is None or isinstance(augment, bool) or callable(augment)):
        raise ArgumentError(
            "augment",
            f"is {augment!r}: pass True, a strategy such as 'flip_crop', or a function "
            "(images, *, key) -> images.",
        )


def check_augmentation(augment: Augmentation, shape: tuple[int, ...]) -> None:
    """Raise `ValueError` unless inputs [n *shape] keep shape and type: a dry run, no numbers."""
    inputs = jax.ShapeDtypeStruct(shape, jnp.float32)
    takes = "pass a function (inputs, *, key) -> inputs"
    try:
        made = eqx.filter_eval_shape(augment, inputs, key=jr.key(0))
    except ArgumentError:
        raise
    except (TypeError, ValueError) as error:
        raise ArgumentError("augment", f"cannot be called ({error}): {takes}.") from error
    got = getattr(made, "shape", None), getattr(made, "dtype", None)
    if got != (inputs.shape, inputs.dtype):
        raise ArgumentError(
            "augment",
            f"made {got[1]} {got[0]} of {inputs.dtype} {inputs.shape}: {takes} of the same shape "
            "and type.",
        )


def _no_images(shape: tuple[int, ...]) -> ArgumentError:
    return ArgumentError(
        "augment",
        f"changes images [h w c], and each input is {list(shape)}: pass a function (inputs, *, "
        "key) -> inputs, or leave it out.",
    )


def describe_augmentation(augment: Augmentation) -> dict[str, Any]:
    """Its name and plain values."""
    fields = getattr(augment, "__dataclass_fields__", {})
    plain = {f: getattr(augment, f) for f in fields}
    plain = {f: v for f, v in plain.items() if isinstance(v, bool | int | float | str)}
    return {"name": getattr(augment, "__name__", type(augment).__name__)} | plain
