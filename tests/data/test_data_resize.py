import sys

import numpy as np
import pytest

from official_files import write_images
from rcig_eqx.data import DataError, ImageFolder, resize


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_of_that_size_is_as_it_was(channels):
    image = np.random.default_rng(0).integers(0, 256, (9, 9, channels), np.uint8)
    np.testing.assert_array_equal(resize(image, 9), image)


@pytest.mark.parametrize(("shape", "size"), [((40, 60), 10), ((60, 40), 10), ((7, 5), 12)])
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes(shape, size, channels):
    flat = np.full((*shape, channels), 77, np.uint8)
    np.testing.assert_array_equal(resize(flat, size), np.full((size, size, channels), 77))


@pytest.mark.parametrize("transpose", [False, True])
def test_the_middle_is_kept_and_both_ends_cut_alike(transpose):
    """An image whose middle is white and whose ends are black."""
    image = np.zeros((20, 60, 3), np.uint8)
    image[:, 20:40] = 255
    image = image.transpose(1, 0, 2) if transpose else image
    small = resize(image, 20)
    np.testing.assert_array_equal(small, 255)
    half = resize(image, 5)
    along = half.mean(axis=(1, 2) if transpose else (0, 2))
    np.testing.assert_array_equal(along, along[::-1])
    assert along[2] == 255


def test_shrinking_is_antialiased():
    """A fine checkerboard becomes gray, where single pixels would be black or white."""
    board = 255 * (np.indices((64, 64)).sum(0) % 2).astype(np.uint8)
    small = resize(board[..., None], 8)
    np.testing.assert_allclose(small, 127.5, atol=2)


def test_brightness_is_kept():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert abs(resize(image, 16).mean() - image.mean()) < 2


@pytest.mark.parametrize(("shape", "size", "message"), [
    ((4, 4, 3), 0, "size is 0"),
    ((4, 4, 4), 2, "4 channels"),
])  # fmt: skip
def test_mistakes(shape, size, message):
    with pytest.raises(ValueError, match=message):
        resize(np.zeros(shape, np.uint8), size)


def test_pillow_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"rcig-eqx\[images\]"):
        resize(np.zeros((4, 4, 3), np.uint8), 2)


def test_folder_of_many_sizes(tmp_path):
    wide = write_images(tmp_path, {"a": 2}, size=(6, 9))
    high = write_images(tmp_path, {"b": 1}, size=(12, 6))
    folder = ImageFolder(tmp_path, size=6)
    assert folder.image_shape == (6, 6, 3)
    np.testing.assert_array_equal(folder[0][0], resize(wide["a"][0], 6))
    np.testing.assert_array_equal(folder[2][0], resize(high["b"][0], 6))
    assert folder.read().image_shape == (6, 6, 3)
    assert list(folder.marks)[-1] == "size 6"
    with pytest.raises(ValueError, match="size is -1"):
        ImageFolder(tmp_path, size=-1)
    with pytest.raises(DataError, match=r"or use ImageFolder\(path, size=6\)"):
        ImageFolder(tmp_path).read()
