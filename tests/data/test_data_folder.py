import grain
import numpy as np
import pytest
from official_files import write_images
from PIL import Image

from rcig_eqx.data import DataError, ImageFolder, load


def test_lazy_items_and_known_labels(tmp_path, monkeypatch):
    arrays = write_images(tmp_path, {"b": 2, "a": 3})
    folder = ImageFolder(tmp_path)
    assert isinstance(folder, grain.sources.RandomAccessDataSource)
    assert len(folder) == 5
    assert folder.class_names == ("a", "b")
    assert folder.labels.tolist() == [0, 0, 0, 1, 1]
    assert folder.image_shape == (6, 5, 3)
    image, label = folder[4]
    np.testing.assert_array_equal(image, arrays["b"][1])
    assert label == 1
    folder.files[0].write_bytes(b"damaged")  # noticed only when it is asked for
    folder[1]
    with pytest.raises(DataError, match=r"a/000\.png cannot be read as an image"):
        folder[0]


def test_other_files_and_hidden_folders_are_passed_over(tmp_path):
    write_images(tmp_path, {"a": 1, ".git": 1, "__MACOSX": 1})
    (tmp_path / "README.txt").write_text("hello")
    (tmp_path / "a" / "notes.txt").write_text("hello")
    (tmp_path / "a" / ".hidden.png").write_text("hello")
    assert ImageFolder(tmp_path).class_names == ("a",)
    assert len(ImageFolder(tmp_path)) == 1


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".bmp", ".tiff"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_lossless_formats(tmp_path, suffix, mode):
    arrays = write_images(tmp_path, {"a": 2}, mode=mode, suffix=suffix)
    images = ImageFolder(tmp_path).read().images
    np.testing.assert_array_equal(images.reshape(arrays["a"].shape), arrays["a"])


def test_pixels_of_more_than_8_bits_are_not_clipped(tmp_path):
    (tmp_path / "a").mkdir()
    file = tmp_path / "a" / "x.png"
    Image.fromarray(np.arange(30, dtype=np.uint16).reshape(6, 5) * 2000).save(file)
    with pytest.raises(DataError, match=r"x\.png has pixels of more than 8 bits \(mode I(;16)?\)"):
        ImageFolder(tmp_path)


def test_jpeg_is_close(tmp_path):
    smooth = np.linspace(0, 255, 256).astype(np.uint8).reshape(16, 16)
    (tmp_path / "a").mkdir()
    Image.fromarray(smooth).save(tmp_path / "a" / "x.jpg", quality=95)
    image, _ = ImageFolder(tmp_path)[0]
    assert np.abs(image[..., 0].astype(int) - smooth).max() < 12


@pytest.mark.parametrize(("channels", "count"), [(None, 3), (1, 1), (3, 3)])
def test_channels(tmp_path, channels, count):
    write_images(tmp_path / "a", {"a": 1})
    assert ImageFolder(tmp_path / "a", channels=channels)[0][0].shape == (6, 5, count)


def test_grey_among_colour_is_widened_and_colour_among_grey_refused(tmp_path):
    colour, grey = write_images(tmp_path / "x", {"a": 1}), {}
    grey = write_images(tmp_path / "y", {"a": 1}, mode="L")
    for first, second, target in (("x", "y", "colour"), ("y", "x", "grey")):
        for i, source in enumerate((first, second)):
            to = tmp_path / target / f"{i}"
            to.mkdir(parents=True)
            (to / "0.png").write_bytes((tmp_path / source / "a" / "000.png").read_bytes())
    images = load(tmp_path / "colour").images
    np.testing.assert_array_equal(images[0], colour["a"][0])
    np.testing.assert_array_equal(images[1, ..., 2], grey["a"][0])
    with pytest.raises(DataError, match=r"1/0\.png is 6x5 in colour but.*channels=3"):
        load(tmp_path / "grey")
    assert ImageFolder(tmp_path / "grey", channels=3).read().image_shape == (6, 5, 3)


def test_different_sizes_name_both_files(tmp_path):
    write_images(tmp_path, {"a": 2})
    write_images(tmp_path, {"b": 1}, size=(4, 9))
    with pytest.raises(DataError, match=r"b/000\.png is 4x9 .*a/000\.png is 6x5 .*alike"):
        load(tmp_path)


def test_layout_errors(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        ImageFolder(tmp_path / "missing")
    with pytest.raises(DataError, match="holds no folders: put the images of each class"):
        ImageFolder(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no images"):
        ImageFolder(tmp_path)
