import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from rcig_eqx import Coreset, save_grid, to_pixels
from rcig_eqx.data import DataError, Identity, load, zca
from rcig_eqx.io._plot import _strips

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


def test_a_hundred_classes_fill_a_page(tmp_path):
    path = save_grid(coreset(1, 100), tuple(map(str, range(100))), tmp_path / "grid.png")
    with Image.open(path) as image:
        width, height = image.size
    assert 0.7 < width / height < 1.4


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


def test_natural_colours_come_back_through_whitening():
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
    with pytest.raises(ValueError, match="one name a class"):
        save_grid(coreset(1, 3), ("a", "b"), tmp_path / "x.png")
    bare = Coreset(jnp.zeros((1, 2, 2, 1)), jnp.zeros((1, 1)), jnp.zeros(()))
    with pytest.raises(ValueError, match=r"result\.coreset"):
        to_pixels(bare)
