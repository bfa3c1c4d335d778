"""ImageNet at 64 pixels from small files in each form it comes in, whole and damaged."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from official_files import png, random_pixels, write_files, write_imagenet_batches, write_tar
from rcig_eqx.data import DataError, _imagenet, load, open_records, resize
from rcig_eqx.data._cache import cache_folder

WNIDS = ("n01440764", "n01443537", "n02119789")
IDS = {"n02119789": 1, "n01440764": 2, "n01443537": 3}  # the devkit numbers them in its own way
COUNT = 10  # as many as batch files


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(_imagenet, "COUNTS", {"train": COUNT, "test": COUNT})


PIXELS = {
    s: random_pixels(COUNT, (64, 64), (80, 70), seed=i) for i, s in enumerate(("train", "test"))
}
LABELS = np.arange(COUNT) % 3


def tar_bytes(files):
    import tarfile

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def train_files():
    """`{wnid: {file: contents}}`."""
    files = {wnid: {} for wnid in WNIDS}
    for i, label in enumerate(LABELS):
        files[WNIDS[label]][f"{WNIDS[label]}_{i}.JPEG"] = png(PIXELS["train"][i])
    return files


def val_files():
    return {f"ILSVRC2012_val_{i + 1:08}.JPEG": png(x) for i, x in enumerate(PIXELS["test"])}


def devkit_files():
    from scipy.io import savemat

    rows = [(IDS[wnid], wnid, "a word", 0) for wnid in sorted(WNIDS, key=IDS.__getitem__)]
    rows.append((4, "n00001740", "entity", 3))  # a class of classes
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    out = io.BytesIO()
    savemat(out, {"synsets": np.array(rows, dtype=kinds)[:, None]})
    truth = "\n".join(str(IDS[WNIDS[label]]) for label in LABELS)
    inside = "ILSVRC2012_devkit_t12/data"
    return {
        f"{inside}/meta.mat": out.getvalue(),
        f"{inside}/ILSVRC2012_validation_ground_truth.txt": truth.encode(),
    }


def write_tars(folder):
    folder.mkdir()
    inner = {f"{wnid}.tar": tar_bytes(files) for wnid, files in reversed(train_files().items())}
    write_files(folder / "ILSVRC2012_img_train.tar", inner, "tar")
    write_files(folder / "ILSVRC2012_img_val.tar", val_files(), "tar")
    write_tar(folder / "ILSVRC2012_devkit_t12.tar.gz", devkit_files())


def write_folders(folder):
    for wnid, files in train_files().items():
        write_files(folder / "train" / wnid, files, "folder")
    for i, (name, data) in enumerate(val_files().items()):
        write_files(folder / "val" / WNIDS[LABELS[i]], {name: data}, "folder")


def write_flat(folder):
    write_folders(folder)
    for file in (folder / "val").glob("*/*"):
        file.rename(folder / "val" / file.name)
    for wnid in WNIDS:
        (folder / "val" / wnid).rmdir()
    write_files(folder, devkit_files(), "folder")


def write_batches(folder, savez=np.savez):
    small = {split: [resize(x, 64) for x in PIXELS[split]] for split in PIXELS}
    write_imagenet_batches(folder, small, len(WNIDS), savez)
    lines = [f"{wnid} {i + 1} a_name" for i, wnid in enumerate(WNIDS)]
    (folder / "map_clsloc.txt").write_text("\n".join(lines))


def write_zips(folder, compression=zipfile.ZIP_STORED, below=""):
    """The batches in the three zips they are handed out in."""
    write_batches(folder)
    of = {"train_part1": range(1, 6), "train_part2": range(6, 11), "val": ()}
    for name, numbers in of.items():
        files = [f"Imagenet64_train/train_data_batch_{i}.npz" for i in numbers] or ["val_data.npz"]
        with zipfile.ZipFile(folder / f"Imagenet64_{name}_npz.zip", "w", compression) as archive:
            for file in files:
                archive.write(folder / file, below + Path(file).name)
                (folder / file).unlink()


FORMS = {
    "tars": write_tars,
    "folders": write_folders,
    "flat": write_flat,
    "batches": write_batches,
    "compressed batches": lambda folder: write_batches(folder, np.savez_compressed),
    "zips": write_zips,
    "deflated zips": lambda folder: write_zips(folder, zipfile.ZIP_DEFLATED, "Imagenet64_npz/"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_form_gives_the_same(form, split, tmp_path):
    FORMS[form](tmp_path / "imagenet")
    kept = tmp_path / "records"
    records = open_records("imagenet64", split, directory=tmp_path, folder=kept, progress=False)
    assert (records.image_shape, records.name, len(records)) == ((64, 64, 3), "imagenet64", COUNT)
    assert records.class_names == WNIDS
    expected = {(resize(x, 64).tobytes(), n) for x, n in zip(PIXELS[split], LABELS, strict=True)}
    assert {(image.tobytes(), label) for image, label in records} == expected
    records.verify(progress=False)
    again = open_records("imagenet64", split, folder=kept)  # without the files they are of
    assert again.folder == kept / f"imagenet64-{split}"


def test_batches_without_names_are_numbered(tmp_path):
    write_batches(tmp_path)
    (tmp_path / "map_clsloc.txt").unlink()
    names = open_records("imagenet64", directory=tmp_path, progress=False).class_names
    assert (len(names), names[0], names[-1]) == (1000, "1", "1000")
    assert [p.name for p in (cache_folder() / "records").iterdir()] == ["imagenet64-train"]


def damage(name, change):
    def apply(folder):
        (path,) = folder.rglob(name)
        change(path)

    return apply


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without(path):
    path.unlink()


def rewrite(**arrays):
    return lambda path: np.savez(path, **(dict(np.load(path)) | arrays))


CASES = {
    "cut train tar": ("tars", "train", damage("*_train.tar", cut), r"img_train\.tar.*truncated"),
    "cut val tar": ("tars", "test", damage("*_val.tar", cut), r"img_val\.tar"),
    "no devkit": ("tars", "test", damage("*.tar.gz", without), r"lacks ILSVRC2012_devkit_t12"),
    "cut devkit": ("tars", "test", damage("*.tar.gz", cut), "devkit_t12.* damaged"),
    "no class numbers": ("flat", "test", damage("meta.mat", cut), "not the official devkit"),
    "too few labels": (
        "flat", "test",
        damage("*truth.txt", lambda path: path.write_text("1\n2")),
        r"val_00000003\.JPEG is none of the validation images",
    ),
    "an image less": ("folders", "train", damage("n01440764_0.JPEG", without), "ended after 9"),
    "a damaged image": (
        "folders", "train",
        damage("n01440764_0.JPEG", cut),
        r"n01440764_0\.JPEG cannot be read as an image",
    ),
    "a batch less": (
        "batches", "train", damage("train_data_batch_3.npz", without),
        r"lacks train_data_batch_3\.npz",
    ),
    "cut batch": ("batches", "train", damage("train_data_batch_3.npz", cut), r"batch_3\.npz"),
    "a zip less": (
        "zips", "train", damage("*_part2_npz.zip", without),
        r"lacks train_data_batch_6\.npz.*_10\.npz",
    ),
    "cut zip": ("zips", "train", damage("*_part2_npz.zip", cut), r"part2_npz\.zip is truncated"),
    "pickled batch": (
        "batches", "test", damage("val_data.npz", rewrite(labels=np.array([None] * COUNT))),
        r"val_data\.npz.*Object arrays cannot be loaded",
    ),
    "no labels": (
        "batches", "test", damage("val_data.npz", lambda path: np.savez(path, data=[1])),
        r"val_data\.npz is truncated or damaged \(it has no labels\.npy\)",
    ),
    "labels from 0": (
        "batches", "test", damage("val_data.npz", rewrite(labels=LABELS)), "int64 from 0"
    ),
    "32 pixels": (
        "batches", "test",
        damage("val_data.npz", rewrite(data=np.zeros((COUNT, 3 * 32 * 32), np.uint8))),
        r"data is uint8 \(10, 3072\), not",
    ),
    "other names": (
        "batches", "test", damage("map_clsloc.txt", lambda path: path.write_text("n01 7 x")),
        "does not number its classes from 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_damaged_and_incomplete_forms_are_refused(case, tmp_path):
    form, split, change, message = CASES[case]
    FORMS[form](tmp_path / "in")
    change(tmp_path / "in")
    with pytest.raises(DataError, match=message):
        open_records(
            "imagenet64", split, directory=tmp_path / "in", folder=tmp_path / "out", progress=False
        )
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_no_disk_is_filled_half(tmp_path, monkeypatch):
    monkeypatch.setattr(_imagenet, "COUNTS", {"train": 10**12})
    write_folders(tmp_path)
    with pytest.raises(OSError, match=r"could not write the records of imagenet64.*GB are needed"):
        open_records("imagenet64", directory=tmp_path, progress=False)


def test_load_says_how_instead():
    with pytest.raises(ValueError, match=r"open_records\('imagenet64', 'test', directory"):
        load("imagenet64", "test")


def test_where_it_is_nowhere_how_to_get_it_is_said(tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)  # another set's
    message = r"ImageNet \(train\) is in none of .*register at https://image-net\.org.*place them"
    with pytest.raises(DataError, match=message):
        open_records("imagenet64", directory=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("imagenet",), "no dataset 'imagenet'.*'imagenet64'.*write_records"),
        (("mnist", "val"), "no split 'val'"),
    ],
)
def test_unknown_names(arguments, message):
    with pytest.raises(ValueError, match=message):
        open_records(*arguments)


def test_named_sets_can_be_streamed_as_well(tmp_path):
    records = open_records("fashion_mnist_small", "test", folder=tmp_path, progress=False)
    small = load("fashion_mnist_small", "test")
    np.testing.assert_array_equal(records.read().images, small.images)
    assert records.class_names == small.class_names
