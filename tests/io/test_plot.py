import time

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from rcig_eqx import Coreset, save_grid
from rcig_eqx.data import DataError, Identity, load, zca
from rcig_eqx.io import to_pixels
from rcig_eqx.io._plot import (
    _grid,
    _strips,
    drawing,
    label,
    matplotlib_figure,
    save_class,
    write_figure,
)

Image = pytest.importorskip("PIL.Image")


def coreset(per_class: int, classes: int = 10, channels: int = 1) -> Coreset:
    """Image i is i / n everywhere."""
    n = per_class * classes
    images = jnp.broadcast_to(jnp.arange(n)[:, None, None, None] / n, (n, 8, 8, channels))
    return Coreset(images, jnp.zeros((n, classes)), jnp.zeros(()), Identity())


@pytest.mark.parametrize(("per_class", "channels"), [(1, 1), (2, 3), (3, 1), (10, 3), (50, 1)])
def test_a_picture_at_every_size(per_class, channels, tmp_path):
    names = tuple(f"a rather long name {i}" for i in range(10))
    path = save_grid(coreset(per_class, channels=channels), names, tmp_path / "x" / "grid.png")
    with Image.open(path) as image:
        width, height = image.size
        pixels = np.asarray(image.convert("L"))
    assert 600 < width < 3000
    assert 300 < height < 3000
    edges = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert edges.min() == 255  # nothing is cut off


@pytest.mark.parametrize(("per_class", "classes"), [(1, 100), (1, 1000), (10, 1000), (1, 10000)])
def test_many_classes_fill_a_page_in_seconds(per_class, classes, tmp_path):
    names = tuple(f"a class name {i}" for i in range(classes))
    strips = np.zeros((classes, 28, 30 * per_class - 2), np.float32)
    began = time.process_time()
    path = write_figure(_grid(strips, per_class, names, "Many"), tmp_path / "x.png", tight=False)
    assert time.process_time() - began < 30
    with Image.open(path) as image:
        width, height = image.size
    assert 0.7 < width / height < 1.4
    assert max(width, height) < 4000


def drawn(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("channels", [2, 4, 5, 13])
def test_images_that_are_no_colors_are_shown_by_their_mean(channels, tmp_path):
    shown = coreset(2, 3, channels)
    mean = Coreset(shown.images.mean(3, keepdims=True), shown.labels, jnp.zeros(()), Identity())
    said = f"T (the mean of {channels} channels)"
    names = ("a", "b", "c")
    one = drawn(save_grid(shown, names, tmp_path / "one.png", title="T"))
    other = drawn(save_grid(mean, names, tmp_path / "other.png", title=said))
    np.testing.assert_array_equal(one, other)
    a, b = (_strips(to_pixels(x), 3) for x in (shown, mean))
    np.testing.assert_allclose(a, b, atol=1e-6)
    save_class(to_pixels(shown), tmp_path / "class.png")


NAMES = ("Ba$$in", "$x$", r"$\frac$", "\udcff", "x\n\x1b[31my", "猫", "_a", "a" * 5000, "%#&{}~^\\")


@pytest.mark.parametrize("per_class", [1, 3, 10])
def test_any_name_can_be_drawn(per_class, tmp_path):
    for suffix in (".png", ".pdf"):
        title = "$$ \udcff " + "t" * 5000
        path = save_grid(
            coreset(per_class, len(NAMES)), NAMES, tmp_path / f"x{suffix}", title=title
        )
        assert path.is_file()
    with Image.open(tmp_path / "x.png") as image:
        assert max(image.size) < 4000


def test_dollars_of_names_are_shown_where_others_are_mathematics(tmp_path):
    """One raster is compared with the other: the text of a name, and the same by no TeX at all."""

    def picture(name, **options):
        figure = matplotlib_figure(figsize=(3, 1))
        figure.text(0.1, 0.5, name, **options)
        return drawn(write_figure(figure, tmp_path / "x.png", tight=False))

    for name in ("Ba$$in", "$x$", "a$b", "plain", "$a$$b$c$"):
        np.testing.assert_array_equal(picture(label(name)), picture(name, parse_math=False))


def test_a_picture_that_fails_is_a_note():
    with pytest.warns(RuntimeWarning, match="No picture: no font"), drawing():
        raise RuntimeError("no font")
    with pytest.raises(OSError, match="full"), drawing(but=OSError):
        raise OSError("full")


def test_each_class_shows_its_own_first_images():
    pixels = to_pixels(coreset(12, 5))
    strips = _strips(pixels, 5)
    assert strips.shape == (5, 8, 10 * 9 - 1)
    np.testing.assert_array_equal(strips[2, 0, ::9], pixels[24:34, 0, 0, 0])
    assert (strips[:, :, 8] == 1).all()


def test_pdf_by_suffix(tmp_path):
    path = save_grid(coreset(1, 3), ("a", "b", "c"), tmp_path / "grid.pdf", title="Title")
    assert path.read_bytes().startswith(b"%PDF")


def test_pixels_are_clipped_to_the_unit_interval():
    images = jnp.array([-1.0, 0.5, 2.0]).reshape(3, 1, 1, 1)
    pixels = to_pixels(Coreset(images, jnp.zeros((3, 3)), jnp.zeros(()), Identity()))
    np.testing.assert_array_equal(pixels.ravel(), [0, 0.5, 1])


def test_compressed_images_keep_what_lies_outside():
    images = jnp.array([[0.2, 0.9], [-0.5, 0.5], [0.0, 2.0]]).reshape(3, 2, 1, 1)
    beyond = Coreset(images, jnp.zeros((3, 3)), jnp.zeros(()), Identity())
    pixels = to_pixels(beyond, compress=True).reshape(3, 2)
    np.testing.assert_allclose(pixels, [[0.2, 0.9], [0, 2 / 3], [0, 1]], atol=1e-6)


def test_natural_colors_come_back_through_whitening():
    try:
        train = load("cifar10", download=False).subset(np.arange(300))
    except DataError:
        pytest.skip("no CIFAR-10 in the cache or in $RCIG_EQX_DATA")
    preprocess = zca(train.images)
    white = Coreset(preprocess(train.images[:5]), jnp.zeros((5, 10)), jnp.zeros(()), preprocess)
    np.testing.assert_allclose(to_pixels(white), train.images[:5] / 255, atol=1e-4)


def test_noise_is_drawn_too(tmp_path):
    noise = Coreset(jr.normal(jr.key(0), (2, 4, 6, 3)), jnp.eye(2), jnp.zeros(()), Identity())
    assert save_grid(noise, ("a", "b"), tmp_path / "x.png").is_file()


def test_what_does_not_fit_is_said(tmp_path):
    with pytest.raises(ValueError, match="one name per class"):
        save_grid(coreset(1, 3), ("a", "b"), tmp_path / "x.png")
    bare = Coreset(jnp.zeros((1, 2, 2, 1)), jnp.zeros((1, 1)), jnp.zeros(()))
    with pytest.raises(ValueError, match=r"result\.coreset"):
        to_pixels(bare)
