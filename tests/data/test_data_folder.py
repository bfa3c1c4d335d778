import io
import struct
import unicodedata
import warnings
import zlib

import grain
import numpy as np
import pytest
from PIL import Image, features

from official_files import write_images
from rcig_eqx.data import DataError, ImageFolder, load
from rcig_eqx.data._pictures import formats
from rcig_eqx.data._resize import decode


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


def encoded(image, kind, **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        file, kind, **options
    )
    return file.getvalue()


def wide_png(mode):
    """A PNG of 16 bits per channel, which pillow cannot write: 2 is RGB, 4 gray with alpha."""
    channels = {2: 3, 4: 2, 6: 4}[mode]
    rows = b"".join(b"\0" + bytes(range(4 * channels)) for _ in range(2))

    def chunk(kind, content):
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, mode, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + body


def wide_tiff(order="<"):
    """A TIFF of 16 bits per channel in RGB, 2 by 2 pixels."""
    entries = [
        *((256, 3, 1, 2), (257, 3, 1, 2), (258, 3, 3, 200), (259, 3, 1, 1), (262, 3, 1, 2)),
        *((273, 4, 1, 300), (277, 3, 1, 3), (278, 3, 1, 2), (279, 4, 1, 24)),
    ]
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, 8)
    directory = struct.pack(f"{order}H", len(entries))
    for tag, kind, count, value in entries:
        fits = f"{order}HHI" + ("HH" if kind == 3 and count == 1 else "I")
        padded = (value, 0) if kind == 3 and count == 1 else (value,)
        directory += struct.pack(fits, tag, kind, count, *padded)
    content = (head + directory + bytes(4)).ljust(200, b"\0")
    content = (content + struct.pack(f"{order}HHH", 16, 16, 16)).ljust(300, b"\0")
    return content + bytes(range(24))


@pytest.mark.parametrize("content", [
    wide_png(2), wide_png(4), wide_png(6), wide_tiff("<"), wide_tiff(">"),
    encoded(np.ones((3, 4), np.uint16), "PNG"), encoded(np.ones((3, 4), np.uint16), "TIFF"),
    encoded(np.ones((3, 4), np.int32), "TIFF"), encoded(np.ones((3, 4), np.float32), "TIFF"),
])  # fmt: skip
@pytest.mark.parametrize("channels", [None, 1, 3])
def test_no_format_of_more_than_8_bits_is_cut(content, channels):
    with Image.open(io.BytesIO(content)) as image:
        image.load()  # it is a whole image
    with pytest.raises(DataError, match="where has pixels of more than 8 bits"):
        decode(content, "where", channels=channels)


def test_16_bits_for_three_colors_together_are_read():
    """A BMP of 5, 6 and 5 bits."""
    pixels = struct.pack("<4H", 0xF800, 0x07E0, 0x001F, 0xFFFF)
    masks = struct.pack("<3I", 0xF800, 0x07E0, 0x001F)
    header = struct.pack("<IiiHHIIiiII", 40, 2, 2, 1, 16, 3, len(pixels), 0, 0, 0, 0)
    start = 14 + len(header) + len(masks)
    content = b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start)
    image = decode(content + header + masks + pixels, "x")
    assert image[::-1].reshape(4, 3).tolist() == [
        [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]
    ]  # fmt: skip


TURNED = {  # what is stored, of an image whose orientation says how it must be turned
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: np.rot90(x, 2).transpose(1, 0, 2),
    8: lambda x: np.rot90(x, -1),
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize(("kind", "options"), [
    ("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {"lossless": True}),
    ("JPEG", {"quality": 100, "subsampling": 0}),
])  # fmt: skip
def test_images_are_turned_as_their_orientation_says(orientation, kind, options):
    right = np.full((16, 24, 3), 20, np.uint8)
    right[:8], right[:, :8] = right[:8] + 180, right[:, :8] + 50  # no turn leaves it as it is
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(TURNED[orientation](right))
    image = decode(encoded(stored, kind, exif=exif.tobytes(), **options), "x")
    assert image.shape == right.shape
    assert np.abs(image.astype(int) - right).max() <= (3 if kind == "JPEG" else 0)


def see_through(alpha):
    pixels = np.zeros((3, 4, 4), np.uint8)
    pixels[..., :3], pixels[..., 3] = (240, 30, 10), alpha
    return pixels


def of_palette(transparency):
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) % 2, "P")
    image.putpalette([240, 30, 10, 0, 200, 0])
    return encoded(image, "PNG", transparency=transparency)


@pytest.mark.parametrize(("content", "first"), [
    (encoded(see_through(0), "PNG"), (255, 255, 255)),
    (encoded(see_through(255), "PNG"), (240, 30, 10)),
    (encoded(see_through(51), "PNG"), (252, 210, 206)),  # 255 + (240 - 255) / 5
    (encoded(see_through(0), "WEBP", lossless=True, exact=True), (255, 255, 255)),
    (encoded(see_through(0), "TIFF"), (255, 255, 255)),
    (encoded(see_through(0), "TGA"), (255, 255, 255)),
    (encoded(see_through(0)[..., :3], "PNG", transparency=(240, 30, 10)), (255, 255, 255)),
    (encoded(see_through(0)[..., :3], "PNG", transparency=(9, 9, 9)), (240, 30, 10)),
    (encoded(see_through(0)[..., 2:], "PNG"), (255,)),
    (encoded(see_through(255)[..., 2:], "PNG"), (10,)),
    (encoded(see_through(0)[..., 0], "PNG", transparency=240), (255,)),
    (of_palette(0), (255, 255, 255)),
    (of_palette(1), (240, 30, 10)),
    (of_palette(bytes([0, 255])), (255, 255, 255)),
    (encoded(Image.new("1", (4, 3), 1), "PNG"), (255,)),
    (encoded(Image.new("CMYK", (4, 3), (0, 255, 255, 0)), "TIFF"), (255, 0, 0)),
])  # fmt: skip
def test_what_is_transparent_is_white(content, first):
    assert tuple(decode(content, "x")[0, 0].tolist()) == first
    gray, colored = (decode(content, "x", channels=channels)[0, 0] for channels in (1, 3))
    assert len(gray) == 1
    assert tuple(colored.tolist()) == (first if len(first) == 3 else first * 3)


def test_the_first_image_of_an_animated_file():
    first, second = (Image.new("RGB", (4, 3), color) for color in ("red", "blue"))
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        content = encoded(first, kind, save_all=True, append_images=[second], **options)
        assert decode(content, "x")[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("content", [
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n",
    encoded(np.zeros((3, 4, 3), np.uint8), "ICO"), encoded(np.zeros((3, 4, 3), np.uint8), "PCX"),
])  # fmt: skip
def test_other_formats_under_the_name_of_a_known_one(tmp_path, content):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.png cannot be read as an image \(it is none of"):
        ImageFolder(tmp_path)


def test_images_that_would_fill_the_memory_are_refused():
    bomb = wide_png(2).replace(struct.pack(">II", 2, 2), struct.pack(">II", 60_000, 60_000))
    at = bomb.index(b"IHDR")
    checksum = struct.pack(">I", zlib.crc32(bomb[at : at + 17]))
    with pytest.raises(DataError, match=r"cannot be read as an image.*decompression bomb"):
        decode(bomb[: at + 17] + checksum + bomb[at + 21 :], "x")


KINDS = {".jfif": "JPEG", ".jpe": "JPEG", ".tga": "TGA", ".jp2": "JPEG2000", ".dib": "DIB"}


@pytest.mark.parametrize("suffix", [*KINDS, ".JFIF"])
def test_every_suffix_of_a_format_is_taken(tmp_path, suffix):
    (tmp_path / "a").mkdir()
    pixels = np.full((16, 16, 3), (200, 40, 40), np.uint8)
    kind = KINDS[suffix.lower()]
    (tmp_path / "a" / f"x{suffix}").write_bytes(encoded(pixels, kind))
    image, _ = ImageFolder(tmp_path)[0]
    assert np.abs(image.astype(int) - pixels).max() < 4


def test_formats_are_those_of_the_installed_pillow(tmp_path):
    has_avif = features.check("avif") if "avif" in features.modules else False
    assert ("AVIF" in formats()) == has_avif
    write_images(tmp_path, {"a": 1})
    (tmp_path / "a" / "x.avif").write_bytes(b"damaged")
    if has_avif:
        assert len(ImageFolder(tmp_path)) == 2
        (tmp_path / "a" / "x.avif").write_bytes(encoded(np.zeros((6, 5, 3), np.uint8), "AVIF"))
        assert ImageFolder(tmp_path)[1][0].shape == (6, 5, 3)
    else:
        with pytest.warns(UserWarning, match=r"1 image files are passed over, .*x\.avif"):
            assert len(ImageFolder(tmp_path)) == 1


@pytest.mark.parametrize(("places", "told"), [
    (["a/x.heic", "a/y.HEIC", "b/z.psd"], "3 image files"),
    (["a/part/x.png"], r"1 image files .*a/part/x\.png"),
    (["x.png", "y.jpg"], "2 image files"),
    (["a/notes.txt", "a/.hidden/x.png", "a/._x.heic", "__MACOSX/a/x.png", "README"], None),
])  # fmt: skip
def test_images_that_are_passed_over_are_counted(tmp_path, places, told):
    write_images(tmp_path, {"a": 2, "b": 1})
    for place in places:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(b"x")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        folder = ImageFolder(tmp_path)
    assert (folder.class_names, len(folder)) == (("a", "b"), 3)
    assert len(caught) == (told is not None)
    if told:
        with pytest.warns(UserWarning, match=told):
            ImageFolder(tmp_path)


def test_a_class_of_folders_names_one_of_its_images(tmp_path):
    write_images(tmp_path / "train", {"a": 1, "b": 1})
    with pytest.raises(DataError, match=r"train holds no images.*train/a/000\.png is not taken"):
        ImageFolder(tmp_path)


def test_a_folder_named_like_an_image_is_none(tmp_path):
    write_images(tmp_path, {"a": 1})
    (tmp_path / "a" / "x.png").mkdir()
    assert len(ImageFolder(tmp_path)) == 1


def test_class_names_are_composed_and_sorted_so(tmp_path):
    composed = "\u00e9t\u00e9"
    write_images(tmp_path / "x", {unicodedata.normalize("NFD", composed): 1, "f": 1, "\u00e8": 1})
    assert ImageFolder(tmp_path / "x").class_names == ("f", "\u00e8", composed)
    write_images(tmp_path / "x", {composed: 1})
    with pytest.raises(DataError, match="class folders holds duplicates"):
        ImageFolder(tmp_path / "x")


def test_the_home_folder(tmp_path, monkeypatch):
    write_images(tmp_path / "pictures", {"a": 1})
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert ImageFolder("~/pictures").class_names == ("a",)
    with pytest.raises(ValueError, match="no home folder is known"):
        ImageFolder("~nobody-of-this-name/pictures")


@pytest.mark.parametrize("channels", [0, 2, 4, True, "rgb"])
def test_channels_are_1_or_3(unhooked, tmp_path, channels):
    write_images(tmp_path, {"a": 1})
    with pytest.raises(ValueError, match="channels is"):
        ImageFolder(tmp_path, channels=channels)


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


def test_grey_among_color_is_widened_and_color_among_grey_refused(tmp_path):
    color, gray = write_images(tmp_path / "x", {"a": 1}), {}
    gray = write_images(tmp_path / "y", {"a": 1}, mode="L")
    for first, second, target in (("x", "y", "color"), ("y", "x", "gray")):
        for i, source in enumerate((first, second)):
            to = tmp_path / target / f"{i}"
            to.mkdir(parents=True)
            (to / "0.png").write_bytes((tmp_path / source / "a" / "000.png").read_bytes())
    images = load(tmp_path / "color").images
    np.testing.assert_array_equal(images[0], color["a"][0])
    np.testing.assert_array_equal(images[1, ..., 2], gray["a"][0])
    with pytest.raises(DataError, match=r"1/0\.png is 6x5 in color but.*channels=3"):
        load(tmp_path / "gray")
    assert ImageFolder(tmp_path / "gray", channels=3).read().image_shape == (6, 5, 3)


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


def spoiled(folder, *names):
    """Files cut short."""
    for name in names:
        (folder / name).write_bytes((folder / name).read_bytes()[:60])


def test_corrupt_images_are_named_counted_and_passed_over_on_request(tmp_path):
    pixels = write_images(tmp_path, {"a": 3, "b": 4})
    spoiled(tmp_path, "a/000.png", "b/001.png", "b/002.png", "b/003.png")
    with pytest.raises(DataError, match=r"a/000\.png cannot be read"):
        ImageFolder(tmp_path)
    named = (
        r"4 of 7 images \(a/000\.png, b/001\.png, b/002\.png and 1 more\) cannot be read and are"
    )
    with pytest.warns(UserWarning, match=named):
        folder = ImageFolder(tmp_path, skip_corrupt=True)
    np.testing.assert_array_equal(folder.labels, [0, 0, 1])
    assert [file.name for file in folder.files] == ["001.png", "002.png", "000.png"]
    np.testing.assert_array_equal(folder.read().images[2], pixels["b"][0])
    spoiled(tmp_path, "b/000.png")
    with pytest.raises(DataError, match="b holds no image that can be read: put images into it"):
        ImageFolder(tmp_path, skip_corrupt=True)


def test_sound_images_are_passed_over_by_no_request(tmp_path):
    write_images(tmp_path, {"a": 2, "b": 2})
    assert len(ImageFolder(tmp_path, skip_corrupt=True)) == 4
