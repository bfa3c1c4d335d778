"""Sets in the layouts of other projects, as their own code writes them, read and written."""

import os
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from _corrupt import damaged

from official_files import REAL
from rcig_eqx import Coreset, DistillResult, evaluate
from rcig_eqx.data import DataError, Identity, Standardize
from rcig_eqx.initializers import centered_labels
from rcig_eqx.io import (
    LAYOUTS,
    AbstractLayout,
    Published,
    StoredSet,
    load_published,
    write_published,
)

N, CLASSES, SHAPE = 6, 3, (8, 8, 3)
NAMES = ("cat", "dög", "ox")
RELEASED = REAL / "published" / "rcig_cifar10_1_checkpoint_15000.msgpack"

rng = np.random.default_rng(0)
IMAGES = rng.normal(size=(N, *SHAPE)).astype(np.float32)
HARD = np.repeat(np.arange(CLASSES), N // CLASSES)
SOFT = rng.normal(size=(N, CLASSES)).astype(np.float32)
PREPROCESS = Standardize(jnp.full(3, 0.4), jnp.full(3, 0.3))
first = np.moveaxis(IMAGES, 3, 1)  # [n c h w]


# The layouts, written as the code of their authors writes them


def save(value: Any, path: Path, **options: Any) -> Path:
    """`value` as PyTorch saves it, arrays as tensors."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")

    def tensors(x: Any) -> Any:
        if isinstance(x, np.ndarray):
            return torch.from_numpy(x.copy())
        if isinstance(x, dict):
            return type(x)((name, tensors(value)) for name, value in x.items())
        return [tensors(each) for each in x] if isinstance(x, list) else x

    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(tensors(value), path, **options)
    return path


def dc(folder: Path, labels: np.ndarray | None) -> Path:
    scores = {"ConvNet": [np.float64(0.28), np.float64(0.29)]}  # numbers of NumPy, as theirs
    other = [first + 1, np.zeros(N, int)]
    return save({"data": [[first, labels], other], "accs_all_exps": scores}, folder / "res_DC.pt")


def mtt(folder: Path, labels: np.ndarray | None) -> Path:
    for which, images in (("0", first * 0), ("best", first)):
        save(images, folder / f"images_{which}.pt")
        save(labels, folder / f"labels_{which}.pt")
    save(first + 1, folder / "images_zca_0.pt")
    return folder


def datm(folder: Path, labels: np.ndarray | None) -> Path:
    save(np.float32(0.02).reshape(()), folder / "lr_best.pt")
    return mtt(folder, labels)


def dd_ranking(folder: Path, labels: np.ndarray | None) -> Path:
    save(first, folder / "images.pt")
    save(0.03, folder / "lr.pt")
    if labels is not None:
        save(labels, folder / "labels.pt")
    return folder


def ncfm(folder: Path, labels: np.ndarray | None) -> Path:
    return save([first, labels], folder / "data_20000.pt")


def rat_bptt(folder: Path, labels: np.ndarray | None) -> Path:
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "IPC_2.h5", "w") as file:
        file.create_dataset("data", data=first.reshape(N, -1))
        file.create_dataset("epoch", data=7)
        if labels is not None:
            file.create_dataset("label", data=labels)
    return folder / "IPC_2.h5"


def rat_bptt_checkpoint(folder: Path, labels: np.ndarray | None) -> Path:
    weights = OrderedDict({"module.data.weight": first.reshape(N, -1)})
    content = {"epoch": 7, "model_state_dict": weights, "optimizer_state_dict": {"state": {}}}
    if labels is not None:
        content["label_state_dict"] = {"module.label.weight": labels}
    return save(content, folder / "IPC_2.pth")


def frepo(folder: Path, labels: np.ndarray | None) -> Path:
    assert labels is not None
    np.savez(folder / "step000100.npz", image=IMAGES, label=labels)
    return folder / "step000100.npz"


def packed(array: np.ndarray, **claimed: Any) -> Any:
    """An array as Flax stores it."""
    msgpack = pytest.importorskip("msgpack")
    parts = {"shape": array.shape, "dtype": array.dtype.name, "content": array.tobytes()} | claimed
    return msgpack.ExtType(1, msgpack.packb(tuple(parts.values()), use_bin_type=True))


def checkpoint(folder: Path, tree: Any, name: str = "checkpoint_15000") -> Path:
    (folder / name).write_bytes(pytest.importorskip("msgpack").packb(tree, use_bin_type=True))
    return folder / name


def chunked(array: np.ndarray) -> dict[str, Any]:
    """A large array as Flax stores it."""
    chunks = [packed(chunk) for chunk in np.split(array.reshape(-1), 2)]
    return {
        "__msgpack_chunked_array__": True,
        "shape": {str(i): side for i, side in enumerate(array.shape)},
        "chunks": {str(i): chunk for i, chunk in enumerate(chunks)},
    }


def rcig(folder: Path, labels: np.ndarray | None) -> Path:
    assert labels is not None
    tree = {"x_proto": packed(IMAGES), "y_proto": packed(labels), "log_temp": packed(SOFT[0, 0])}
    other = {"x_proto": packed(IMAGES + 1), "y_proto": packed(labels)}
    return checkpoint(folder, {"step": 3, "params": other, "ema_average": tree, "opt_state": {}})


def rcig_in_chunks(folder: Path, labels: np.ndarray | None) -> Path:
    assert labels is not None
    tree = {"x_proto": chunked(IMAGES), "y_proto": packed(labels)}
    return checkpoint(folder, {"params": tree, "ema_average": None}, "distilled.msgpack")


class Case(NamedTuple):
    """A layout by name, what writes it, the labels it may have, and the learning rate it tells."""

    layout: str
    write: Callable[[Path, Any], Path]
    labels: tuple[str, ...]
    rate: float | None = None


CASES = [
    Case("dc", dc, ("hard", "soft")),
    Case("mtt", mtt, ("hard", "soft")),
    Case("mtt", datm, ("soft",), 0.02),
    Case("dd_ranking", dd_ranking, ("hard", "soft", "none"), 0.03),
    Case("ncfm", ncfm, ("hard", "soft")),
    Case("rat_bptt", rat_bptt, ("hard", "soft", "none")),
    Case("rat_bptt", rat_bptt_checkpoint, ("soft", "none")),
    Case("frepo", frepo, ("soft",)),
    Case("rcig", rcig, ("soft",)),
    Case("rcig", rcig_in_chunks, ("soft",)),
]
LABELS = {"hard": HARD, "soft": SOFT, "none": None}
EACH = [
    pytest.param(case, kind, id=f"{case.write.__name__}-{kind}")
    for case in CASES
    for kind in case.labels
]


def load(path: Path, **options: Any) -> Published:
    return load_published(path, **{"preprocess": PREPROCESS, "normalized": True} | options)


def same(array: Any, expected: np.ndarray) -> bool:
    array = np.asarray(array)
    return array.dtype == expected.dtype and array.tobytes() == expected.tobytes()


@pytest.mark.parametrize(("case", "kind"), EACH)
def test_a_layout_is_recognized_and_read_exactly(case, kind, tmp_path):
    path = case.write(tmp_path, LABELS[kind])
    found = load(path, num_classes=CLASSES)
    assert found.layout == case.layout
    assert found.labels == ("soft" if kind == "soft" else "hard")
    assert same(found.coreset.images, IMAGES)
    assert same(found.coreset.labels, SOFT if kind == "soft" else centered(HARD))
    assert found.coreset.preprocess is PREPROCESS
    assert found.class_names == ("0", "1", "2")
    assert found.learning_rate == (None if case.rate is None else pytest.approx(case.rate))
    assert found.experiments == (2 if case.layout == "dc" else 1)
    assert found.coreset.flip is (case.layout in ("rcig", "frepo"))
    assert same(load(path, layout=case.layout, num_classes=CLASSES).coreset.images, IMAGES)


def centered(labels: np.ndarray) -> np.ndarray:
    return np.asarray(centered_labels(labels, CLASSES))


def pictures(folder: Path, names: tuple[str, ...]) -> np.ndarray:
    """A folder of pictures per class, in the order of its names."""
    Image = pytest.importorskip("PIL.Image")
    pixels = rng.integers(0, 256, (len(names), 2, *SHAPE)).astype(np.uint8)
    for name, images in zip(names, pixels, strict=True):
        (folder / name).mkdir(parents=True)
        for number, image in enumerate(images):
            Image.fromarray(image).save(folder / name / f"class_id{number:03d}.png")
    return pixels


@pytest.mark.parametrize("names", [("new000", "new001", "new002"), ("0", "1", "2"), NAMES])
def test_folders_of_pictures_are_read_exactly(names, tmp_path):
    pixels = pictures(tmp_path / "set", names).reshape(-1, *SHAPE)
    found = load_published(tmp_path / "set")
    assert found.layout == "image_folders"
    assert found.labels == "hard"
    assert found.class_names == (NAMES if names == NAMES else ("0", "1", "2"))
    assert np.array_equal(np.rint(found.coreset.images * 255), pixels)
    assert same(found.coreset.labels, centered(HARD))
    standardized = load_published(tmp_path / "set", preprocess=PREPROCESS).coreset
    np.testing.assert_allclose(standardized.images, (pixels / 255 - 0.4) / 0.3, atol=1e-6)
    assert not standardized.flip


def test_numbered_folders_are_in_the_order_of_their_numbers(tmp_path):
    names = tuple(map(str, range(11)))
    pixels = pictures(tmp_path / "set", names)
    found = load_published(tmp_path / "set", class_names=[f"class {name}" for name in names])
    assert np.array_equal(np.rint(found.coreset.images * 255), pixels.reshape(-1, *SHAPE))
    assert found.class_names[10] == "class 10"
    assert np.array_equal(found.coreset.labels.argmax(1), np.repeat(range(11), 2))


@pytest.mark.parametrize(
    ("names", "given", "numbers"),
    [
        (NAMES, ("ox", "hen", "dög", "cat"), (3, 2, 0)),
        (("0", "3", "7"), tuple("abcdefghij"), (0, 3, 7)),
        (("new000", "new003", "new007"), tuple("abcdefghij"), (0, 3, 7)),
        (("1", "2", "3"), ("1", "2", "3"), (0, 1, 2)),
    ],
)
def test_folders_find_their_class_by_name_or_number(names, given, numbers, tmp_path):
    pixels = pictures(tmp_path / "set", names)
    found = load_published(tmp_path / "set", class_names=given)
    assert found.class_names == given
    order = np.argsort(numbers)
    assert np.array_equal(found.coreset.labels.argmax(1), np.repeat(np.sort(numbers), 2))
    assert np.array_equal(np.rint(found.coreset.images * 255), pixels[order].reshape(-1, *SHAPE))


def test_folders_of_unknown_classes_or_numbers_are_told(tmp_path):
    pictures(tmp_path / "named", NAMES)
    with pytest.raises(ValueError, match="class_names lack 'ox': name all classes of the set"):
        load_published(tmp_path / "named", class_names=("cat", "dög", "cow"))
    pictures(tmp_path / "numbered", ("0", "3", "7"))
    with pytest.raises(ValueError, match=r"num_classes .* is None, and labels reach 7: pass"):
        load_published(tmp_path / "numbered")
    assert load_published(tmp_path / "numbered", num_classes=10).class_names[7] == "7"
    pictures(tmp_path / "twice", ("3", "new003"))  # no numbers of classes then
    assert load_published(tmp_path / "twice").class_names == ("3", "new003")


@pytest.mark.parametrize("labels", [HARD, SOFT])
def test_stored_names_of_any_labels_are_found_among_those_given(labels, tmp_path, monkeypatch):
    monkeypatch.setattr(LAYOUTS, "_makers", dict(LAYOUTS._makers))
    monkeypatch.setattr(Npy, "stored", (labels, NAMES))
    LAYOUTS.register("npy", Npy)
    np.save(tmp_path / "set.npy", IMAGES)
    given = ("ox", "cat", "dög")
    found = load(tmp_path, class_names=given)
    plain = load(tmp_path)
    assert (plain.class_names, found.class_names) == (NAMES, given)
    for image, label in zip(plain.coreset.images, plain.coreset.labels, strict=True):
        (at,) = np.flatnonzero((found.coreset.images == image).all((1, 2, 3)))
        assert same(found.coreset.labels[at], np.asarray(label)[[2, 0, 1]])


@pytest.mark.parametrize(
    ("write", "name", "mean", "std"),
    [
        (dc, "cifar10", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        (dc, "cifar100", (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
        (mtt, "cifar100", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        (dd_ranking, "tiny_imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_a_data_set_names_the_constants_of_the_authors(write, name, mean, std, tmp_path):
    found = load_published(write(tmp_path, HARD), preprocess=name, num_classes=CLASSES).coreset
    assert same(found.images, IMAGES)
    assert found.preprocess is not None
    seen = found.preprocess(np.full((1, *SHAPE), 0.5, np.float32))
    np.testing.assert_allclose(seen[0, 0, 0], (0.5 - np.array(mean)) / std, rtol=1e-5)


def test_constants_that_no_authors_take_are_refused(tmp_path):
    with pytest.raises(ValueError, match="preprocess is 'cifar': did you mean 'cifar10'"):
        load_published(dc(tmp_path, HARD), preprocess="cifar")
    with pytest.raises(ValueError, match=r"layout 'frepo' has no constants: pass data\.zca"):
        load_published(frepo(tmp_path, SOFT), preprocess="cifar10")
    with pytest.raises(ValueError, match=r"preprocess is missing.*'dc'.*such as \"cifar10\""):
        load_published(dc(tmp_path, HARD))


def test_unwhitened_images_of_mtt_are_pixels_without_bounds(tmp_path):
    path = mtt(tmp_path, HARD) / "images_zca_0.pt"
    assert IMAGES.max() + 1 > 1.5
    found = load_published(path).coreset
    assert same(found.images, IMAGES + 1)
    assert isinstance(found.preprocess, Identity)
    found = load_published(path, preprocess=PREPROCESS).coreset
    np.testing.assert_allclose(found.images, (IMAGES + 1 - 0.4) / 0.3, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="pass normalized=True"):  # others have bounds
        load_published(tmp_path / "images_best.pt", normalized=False)


def test_pixels_are_preprocessed_here(tmp_path):
    pytest.importorskip("torch")
    pixels = np.abs(first) / 9
    path = save([pixels, HARD], tmp_path / "data_init.pt")
    found = load_published(path).coreset
    assert same(found.images, np.moveaxis(pixels, 1, 3).copy())
    assert isinstance(found.preprocess, Identity)
    found = load_published(path, preprocess=PREPROCESS).coreset
    np.testing.assert_allclose(PREPROCESS.inverse(found.images)[0, 0, 0], pixels[0, :, 0, 0], 1e-5)
    bytes_ = save({"data": [[(pixels * 255).astype(np.uint8), HARD]]}, tmp_path / "res.pt")
    assert load_published(bytes_, normalized=False).coreset.images.max() <= 1


def test_another_experiment_or_iteration_is_read(tmp_path):
    assert same(load(dc(tmp_path, HARD), experiment=1, num_classes=3).coreset.images, IMAGES + 1)
    folder = mtt(tmp_path / "mtt", HARD)
    assert same(load(folder / "images_0.pt").coreset.images, IMAGES * 0)
    assert same(load(folder / "images_zca_0.pt").coreset.images, IMAGES + 1)
    (folder / "images_best.pt").unlink()
    with pytest.raises(ValueError, match="has 2 files of the layout 'mtt': pass the one of"):
        load(folder)


def test_old_files_of_pytorch_are_read(tmp_path):
    content = {"data": [[first, HARD]], "accs_all_exps": {}}
    path = save(content, tmp_path / "res.pt", _use_new_zipfile_serialization=False)
    assert same(load(path).coreset.images, IMAGES)


def test_hard_labels_are_put_in_order(tmp_path):
    order = rng.permutation(N)
    np.savez(tmp_path / "set.npz", image=IMAGES[order], label=HARD[order].astype(np.float64))
    found = load(tmp_path / "set.npz")
    assert found.labels == "hard"
    assert same(found.coreset.labels, centered(HARD))
    assert {x.tobytes() for x in np.asarray(found.coreset.images[:2])} == {
        x.tobytes() for x in IMAGES[:2]
    }


def test_mirroring_is_stated_or_that_of_the_layout(tmp_path):
    path = frepo(tmp_path, SOFT)
    assert load(path).coreset.flip
    assert not load(path, flip=False).coreset.flip
    np.savez(tmp_path / "gray.npz", image=IMAGES[..., :1], label=SOFT)
    assert not load(tmp_path / "gray.npz", preprocess=Identity()).coreset.flip
    np.savez(tmp_path / "other.npz", image=IMAGES, label=SOFT)
    assert load(tmp_path / "other.npz", layout="frepo", flip=True).coreset.flip


def test_a_read_set_is_evaluated_by_class_names(tmp_path):
    found = load(frepo(tmp_path, SOFT), class_names=NAMES)
    images = rng.integers(0, 256, (4, *SHAPE)).astype(np.uint8)
    report = evaluate(
        found.coreset,
        (images, np.array([0, 1, 2, 0])),
        key=jr.key(0),
        class_names=found.class_names,
        num_networks=1,
        steps=2,
        progress=False,
    )
    assert report.class_names == NAMES


def test_the_released_set_of_the_paper_is_read():
    if not RELEASED.exists():
        pytest.skip(f"{RELEASED} is not there")
    pytest.importorskip("msgpack")
    found = load(RELEASED)
    assert found.layout == "rcig"
    assert found.coreset.images.shape == (10, 32, 32, 3)
    assert found.coreset.flip
    assert found.labels == "soft"
    whitened = np.asarray(found.coreset.images)
    assert abs(whitened.mean()) < 0.1
    assert whitened.min() < -1


# What is missing or wrong in a call


def wrong(tmp_path: Path, **options: Any) -> None:
    load_published(frepo(tmp_path, options.pop("label", SOFT)), **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, r"preprocess is missing.*'frepo'.*data\.standardize\(train\.images\)"),
        ({"preprocess": Standardize(jnp.ones(2), jnp.ones(2))}, "preprocess is not for images"),
        ({"normalized": False}, r"reach from -.*pass normalized=True"),
        ({"layout": "datm"}, r"layout is 'datm': .*choose one of mtt, dd_ranking, ncfm"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"num_classes": 4}, r"is 4, and labels are rows of 3"),
        ({"class_names": NAMES[:2]}, r"num_classes .* is 2, and labels are rows of 3"),
        ({"class_names": NAMES, "num_classes": 2}, "num_classes is 2, and there are 3 names"),
        ({"class_names": "abc"}, "pass a list of text"),
        ({"experiment": 1}, "experiment is 1: pass one of 0 to 0"),
        ({"experiment": -1}, "experiment is -1"),
        ({"label": HARD, "num_classes": 2}, "labels reach 2: pass more"),
        ({"label": HARD * 1000}, "labels reach 2000: pass more"),
    ],
)
def test_a_wrong_call_names_its_argument(options, said, tmp_path):
    stated = {} if options in ({}, {"normalized": False}) else {"preprocess": PREPROCESS}
    with pytest.raises(ValueError, match=said):
        wrong(tmp_path, **stated | options)


def test_sets_without_labels_need_the_number_of_classes(tmp_path):
    path = rat_bptt(tmp_path, None)
    for count, said in ((None, "is None, and 6 images have no labels"), (4, "is 4, and 6 images")):
        with pytest.raises(ValueError, match=said):
            load(path, num_classes=count)
    assert load(path, class_names=NAMES).class_names == NAMES


def test_no_layout_or_no_file_is_told(tmp_path):
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(ValueError, match=r"layout is not told by names in .*pass one of"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load(tmp_path / "lacking.npz")


@pytest.mark.parametrize(
    ("name", "lacking", "said"),
    [
        ("res.pt", "torch", r"needs torch: pip install \"torch>=2\.10\""),
        ("IPC_1.h5", "h5py", r"needs h5py: pip install \"rcig-eqx\[published\]\""),
        ("set.msgpack", "msgpack", r"needs msgpack: pip install \"rcig-eqx\[published\]\""),
        ("set.parquet", "pyarrow.parquet", r"pip install \"rcig-eqx\[hf\]\""),
    ],
)
def test_a_lacking_package_is_named(name, lacking, said, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, lacking, None)
    (tmp_path / name).write_bytes(b"0" * 99)
    with pytest.raises(ImportError, match=said):
        load(tmp_path / name)


def test_an_old_pytorch_is_refused(tmp_path, monkeypatch):
    path = dc(tmp_path, HARD)
    monkeypatch.setattr("torch.__version__", "2.9.1")
    with pytest.raises(ImportError, match=r"can run code in PyTorch 2\.9\.1"):
        load(path)


@pytest.mark.parametrize(
    ("version", "raised", "said"),
    [
        ("14.0.0", ImportError, r'can run code in pyarrow 14\.0\.0: .*"pyarrow>=14\.0\.1"'),
        ("9.0.0.dev1", ImportError, r"can run code in pyarrow 9\.0\.0"),
        ("14.0.1", DataError, "is damaged or no set"),
    ],
)
def test_an_old_pyarrow_is_refused(version, raised, said, tmp_path, monkeypatch):
    for name in ("pyarrow", "pyarrow.parquet"):
        module = SimpleNamespace(__name__=name, __version__=version)
        monkeypatch.setitem(sys.modules, name, module)
    (tmp_path / "set.parquet").write_bytes(b"PAR1")
    with pytest.raises(raised, match=said):
        load(tmp_path / "set.parquet")


# Hostile files: refused before anything of them runs or is made


class Runs:
    """A pickle of it runs code."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def images_that_run_code(folder: Path) -> Path:
    return save({"data": [[first, Runs(folder / "ran")]]}, folder / "res.pt")


def a_bare_pickle(folder: Path) -> Path:
    pytest.importorskip("torch")
    (folder / "res.pt").write_bytes(pickle.dumps(Runs(folder / "ran")))
    return folder / "res.pt"


def objects_in_npz(folder: Path) -> Path:
    label = np.array([Runs(folder / "ran")] * N, object)
    np.savez(folder / "set.npz", image=IMAGES, label=label)
    return folder / "set.npz"


def one_number_repeated(folder: Path) -> Path:
    torch = pytest.importorskip("torch")
    huge = torch.zeros(1, 1, 1, 1).expand(10**6, 3, 10**3, 10**3)
    torch.save({"data": [[huge, torch.zeros(10**6)]]}, folder / "res.pt")
    return folder / "res.pt"


def a_compressed_file(folder: Path) -> Path:
    source = save([first * 0, HARD], folder / "source")
    with (
        zipfile.ZipFile(source) as old,
        zipfile.ZipFile(folder / "data_0.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    return folder / "data_0.pt"


def a_storage_that_claims_more(folder: Path) -> Path:
    source = save([first, HARD], folder / "source")
    numbers = struct.pack("<H", first.size)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(folder / "data_0.pt", "w") as new:
        for info in old.infolist():
            content = old.read(info)
            if info.filename.endswith("data.pkl"):
                assert b"M" + numbers in content
                content = content.replace(b"M" + numbers, b"J" + struct.pack("<i", 2**30))
            new.writestr(info.filename, content)
    return folder / "data_0.pt"


def hdf5(folder: Path, fill: Callable[[Any, Any], None]) -> Path:
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "set.h5", "w") as file:
        file["label"] = HARD
        fill(h5py, file)
    return folder / "set.h5"


def hdf5_never_written(folder: Path) -> Path:
    return hdf5(folder, lambda _, file: file.create_dataset("data", (6, 3, 2**14, 2**14), "f4"))


def hdf5_of_repeated_bytes(folder: Path) -> Path:
    def fill(_: Any, file: Any) -> None:
        options = {"compression": "gzip", "compression_opts": 9}
        file.create_dataset("data", data=np.zeros((6, 3, 512, 512), "f4"), **options)

    return hdf5(folder, fill)


def hdf5_of_another_file(folder: Path) -> Path:
    frepo(folder, SOFT)

    def fill(h5py: Any, file: Any) -> None:
        file["data"] = h5py.ExternalLink(str(folder / "other.h5"), "data")

    return hdf5(folder, fill)


def hdf5_of_bytes_elsewhere(folder: Path) -> Path:
    (folder / "secret").write_bytes(IMAGES.tobytes())

    def fill(_: Any, file: Any) -> None:
        outside = [(str(folder / "secret"), 0, IMAGES.nbytes)]
        file.create_dataset("data", first.shape, "f4", external=outside)

    return hdf5(folder, fill)


def hdf5_of_text(folder: Path) -> Path:
    return hdf5(folder, lambda _, file: file.create_dataset("data", data=["a"] * N))


def hdf5_of_numbers(folder: Path) -> Path:
    return hdf5(folder, lambda _, file: file.create_dataset("data", data=HARD))


def flax(folder: Path, **arrays: Any) -> Path:
    tree = {"x_proto": packed(IMAGES), "y_proto": packed(SOFT)} | arrays
    return checkpoint(folder, {"ema_average": tree})


def deeply_nested(folder: Path) -> Path:
    pytest.importorskip("msgpack")
    (folder / "set.msgpack").write_bytes(b"\x81\xa1a" * 10**5 + b"\xc0")
    return folder / "set.msgpack"


def claims_many_entries(folder: Path) -> Path:
    pytest.importorskip("msgpack")
    (folder / "set.msgpack").write_bytes(b"\xdd\x00\xff\xff\xff" * 1000)
    return folder / "set.msgpack"


def ragged_rows(folder: Path) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    images = [[[[0.0, 1.0]]], [[[0.0], [1.0]]]]
    parquet.write_table(pyarrow.table({"image": images, "label": [0, 1]}), folder / "s.parquet")
    return folder / "s.parquet"


def many_nulls(folder: Path) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    column = pyarrow.nulls(10**6, pyarrow.float32())
    parquet.write_table(pyarrow.table({"image": column, "label": column}), folder / "s.parquet")
    return folder / "s.parquet"


def npz(folder: Path, image: Any = IMAGES, label: Any = SOFT) -> Path:
    np.savez(folder / "set.npz", image=image, label=label)
    return folder / "set.npz"


def poisoned(array: np.ndarray, value: float) -> np.ndarray:
    array = array.copy()
    array[-1, 0] = value
    return array


HOSTILE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "code": (images_that_run_code, "more than numbers, text and tensors"),
    "a bare pickle": (a_bare_pickle, "more than numbers, text and tensors"),
    "objects": (objects_in_npz, "Object arrays"),
    "repeated": (one_number_repeated, r"\[1000000, 3, 1000, 1000\] is larger than what it lies in"),
    "compressed": (a_compressed_file, "unpacks to more bytes"),
    "storage": (a_storage_that_claims_more, "record size"),
    "no data": (lambda f: save({"date": []}, f / "res.pt"), "it has no data"),
    "no experiments": (lambda f: save({"data": []}, f / "res.pt"), "damaged or no set"),
    "no tensors": (lambda f: save({"data": [[1, 2]]}, f / "res.pt"), "where a tensor is expected"),
    "three parts": (lambda f: save([first] * 3, f / "data_1.pt"), "too many values"),
    "unwritten hdf5": (hdf5_never_written, "larger than what it lies in"),
    "packed hdf5": (hdf5_of_repeated_bytes, "larger than what it lies in"),
    "linked hdf5": (hdf5_of_another_file, "it has no data of its own"),
    "external hdf5": (hdf5_of_bytes_elsewhere, "lies in another file"),
    "text hdf5": (hdf5_of_text, "no array of numbers"),
    "hdf5 of numbers": (hdf5_of_numbers, r"\[6\], not \[n c h w\]"),
    "deep": (deeply_nested, "damaged or no set"),
    "entries": (claims_many_entries, "exceeds max_array_len"),
    "no average": (lambda f: checkpoint(f, {"step": 1}), "it has no params/x_proto"),
    "no tree": (lambda f: checkpoint(f, [1]), "it has no params/x_proto"),
    "no array": (lambda f: flax(f, x_proto=[1]), "where an array is expected"),
    "other type": (
        lambda f: flax(f, x_proto=packed(IMAGES, dtype="object")),
        "has the dtype 'object'",
    ),
    "shape": (
        lambda f: flax(f, x_proto=packed(IMAGES, shape=(2**40, 8, 8, 3))),
        "said to be an array",
    ),
    "negative shape": (
        lambda f: flax(f, x_proto=packed(IMAGES, shape=(-6, -8, 8, 3))),
        "said to be an array",
    ),
    "chunks": (lambda f: flax(f, x_proto={"chunks": {"1": packed(IMAGES)}, "shape": {}}), "no 0"),
    "endless chunks": (
        lambda f: flax(f, x_proto=chunked(IMAGES) | {"shape": {"0": 2**62}}),
        "said to be an array",
    ),
    "ragged": (ragged_rows, "several shapes"),
    "nulls": (many_nulls, "more than it can hold"),
    "flat images": (lambda f: npz(f, image=IMAGES.reshape(N, -1)), r"\[6, 192\], not \[n h w c\]"),
    "no images": (lambda f: npz(f, image=IMAGES[:0]), r"not \[n h w c\]"),
    "integers": (lambda f: npz(f, image=IMAGES.astype(int)), "pass normalized=False"),
    "complex": (lambda f: npz(f, image=IMAGES * 1j), "images are complex64"),
    "NaN": (lambda f: npz(f, image=poisoned(IMAGES, np.nan)), "images are NaN or infinite"),
    "too large": (lambda f: npz(f, image=IMAGES.astype(float) * 1e300), "NaN or infinite"),
    "infinite labels": (lambda f: npz(f, label=poisoned(SOFT, np.inf)), "labels are NaN or inf"),
    "fewer labels": (lambda f: npz(f, label=SOFT[1:]), r"labels are float32 \[5, 3\] of 6"),
    "text labels": (lambda f: npz(f, label=np.array(["a"] * N)), "labels are <U1"),
    "labels of images": (lambda f: npz(f, label=IMAGES), "its labels are"),
    "fractions": (lambda f: npz(f, label=HARD + 0.5), "no class numbers"),
    "negative labels": (lambda f: npz(f, label=HARD - 1), "no class numbers"),
    "lacking labels": (lambda f: (np.savez(f / "s.npz", image=IMAGES), f)[1], "it has no label"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused(name, tmp_path):
    write, said = HOSTILE[name]
    path = write(tmp_path)
    with pytest.raises(DataError, match=said) as caught:
        load(path)
    assert str(tmp_path) in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("told", [None, 20_000])
def test_labels_of_more_numbers_than_fit_are_refused(told, tmp_path):
    many = np.arange(20_000)
    np.savez(tmp_path / "set.npz", image=np.zeros((20_000, 1, 1, 1), np.float32), label=many)
    with pytest.raises(ValueError, match=r"20,000 images of 20,000 classes are too many"):
        load_published(tmp_path, preprocess=Identity(), num_classes=told)


@pytest.mark.parametrize("name", ["images_best.pt", "labels_best.pt", "lr_best.pt"])
def test_every_file_of_a_set_is_of_limited_size(name, tmp_path, monkeypatch):
    folder = datm(tmp_path, SOFT)
    monkeypatch.setattr("rcig_eqx.io._published._layout.MAX_FILE", 20_000)
    assert load(folder).learning_rate == pytest.approx(0.02)
    with (folder / name).open("ab") as file:
        file.write(b"0" * 20_000)
    with pytest.raises(DataError, match=f"{name} has more than 20,000 bytes"):
        load(folder)


@pytest.mark.parametrize("rate", [-1.0, float("nan"), float("inf"), 0.0])
def test_an_impossible_learning_rate_is_refused(rate, tmp_path):
    save(rate, dd_ranking(tmp_path, HARD) / "lr.pt")
    with pytest.raises(DataError, match="its learning rate is"):
        load(tmp_path)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.write.__name__)
def test_damage_of_any_kind_is_refused_or_harmless(case, tmp_path):
    path = case.write(tmp_path, SOFT)
    files = [path] if path.is_file() else sorted(path.iterdir())
    numbers = np.random.default_rng(0)
    refused = 0
    for _ in range(15):
        file = files[numbers.integers(len(files))]
        content = file.read_bytes()
        file.write_bytes(damaged(content, numbers))
        try:
            found = load(path)
        except DataError as error:
            assert str(tmp_path) in str(error)  # noqa: PT017
            refused += 1
        except ValueError:  # class numbers where rows were
            refused += 1
        else:
            assert found.coreset.images.shape[1:] == SHAPE
            assert np.isfinite(found.coreset.images).all()
            assert np.isfinite(found.coreset.labels).all()
        file.write_bytes(content)
    assert refused
    assert same(load(path).coreset.images, IMAGES)


def test_a_file_cut_off_is_refused(tmp_path):
    for case in CASES:
        folder = tmp_path / case.write.__name__
        folder.mkdir()
        path = case.write(folder, SOFT)
        path = path if path.is_file() else sorted(path.glob("images*.pt"))[-1]
        content = path.read_bytes()
        for length in (0, 1, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:length])
            with pytest.raises(DataError):
                load(path, layout=case.layout)


# What is written


def a_set(labels: np.ndarray, **options: Any) -> Coreset:
    arrays = jnp.asarray(IMAGES), jnp.asarray(labels), jnp.zeros(())
    return Coreset(*arrays, PREPROCESS, **options)


def needs(layout: str) -> None:
    pytest.importorskip("datasets" if layout == "hf" else "torch")


@pytest.mark.parametrize("kind", ["soft", "hard"])
@pytest.mark.parametrize("layout", ["mtt", "dc", "dd_ranking", "hf"])
def test_what_is_written_is_read_back_bit_for_bit(layout, kind, tmp_path):
    needs(layout)
    coreset = a_set(SOFT if kind == "soft" else centered(HARD))
    folder = write_published(coreset, tmp_path / "sets" / layout, layout=layout)
    assert folder == tmp_path / "sets" / layout
    assert sorted(x.name for x in folder.parent.iterdir()) == [layout]
    found = load(folder)
    assert (found.layout, found.labels, found.learning_rate) == (layout, kind, None)
    assert same(found.coreset.images, IMAGES)
    assert same(found.coreset.labels, np.asarray(coreset.labels))
    again = write_published(found, tmp_path / "again", layout=layout)
    assert same(load(again).coreset.labels, np.asarray(coreset.labels))
    with pytest.raises(FileExistsError, match="is there already"):
        write_published(coreset, folder, layout=layout)


def test_class_numbers_that_are_written_are_read_sorted(tmp_path):
    needs("mtt")
    order = np.array([5, 0, 3, 1, 4, 2])
    arrays = jnp.asarray(IMAGES[order]), jnp.asarray(centered(HARD[order])), jnp.zeros(())
    found = load(write_published(Coreset(*arrays, PREPROCESS), tmp_path / "set")).coreset
    assert same(found.images, IMAGES[order][np.argsort(HARD[order], kind="stable")])
    assert same(found.labels, centered(HARD))


def test_shards_are_told_from_a_set(tmp_path):
    for number in range(2):
        shard = tmp_path / "data" / f"train-{number:05d}-of-00002.parquet"
        shard.parent.mkdir(exist_ok=True)
        shard.touch()
    with pytest.raises(ValueError, match="has 2 files of the layout 'hf': pass the one of a set"):
        load(tmp_path)


def test_files_are_what_the_authors_read(tmp_path):
    torch = pytest.importorskip("torch")
    written = write_published(a_set(centered(HARD)), tmp_path / "mtt", learning_rate=0.02)
    images, labels = (torch.load(written / f"{x}_best.pt") for x in ("images", "labels"))
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert images.is_contiguous()
    assert same(images.numpy(), first.copy())
    assert float(torch.load(written / "lr_best.pt")) == pytest.approx(0.02)
    assert load(written).learning_rate == pytest.approx(0.02)
    written = write_published(a_set(SOFT), tmp_path / "dd", layout="dd_ranking", learning_rate=1.0)
    assert sorted(x.name for x in written.iterdir()) == ["images.pt", "labels.pt", "lr.pt"]
    written = write_published(a_set(SOFT), tmp_path / "dc", layout="dc")
    content = torch.load(written / "res.pt")
    assert content.keys() == {"data", "accs_all_exps"}
    assert same(content["data"][0][1].numpy(), SOFT)


def test_hugging_face_reads_its_folder(tmp_path):
    datasets = pytest.importorskip("datasets", reason="pip install 'rcig-eqx[hf]'")
    written = write_published(a_set(SOFT), tmp_path / "set", layout="hf")
    rows = datasets.load_dataset(str(written), cache_dir=tmp_path / "cache", split="train")
    assert len(rows) == N
    columns = rows.with_format("numpy")[:]
    assert same(columns["image"], first.copy())
    assert same(columns["label"], SOFT)


def test_a_result_is_written_and_mirroring_is_told(tmp_path):
    needs("mtt")
    coreset = a_set(SOFT, flip=True)
    result = DistillResult(coreset, coreset, coreset, NAMES, {"steps": 1, "steps_done": 1}, {})
    with pytest.warns(RuntimeWarning, match="stands for its mirror images too"):
        folder = write_published(result, tmp_path / "set")
    assert same(load(folder, flip=True).coreset.labels, SOFT)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layout": "frepo"}, "layout is one that is only read"),
        ({"layout": "parquet"}, "layout is 'parquet'"),
        ({"layout": "hf", "learning_rate": 0.1}, "learning_rate has no file in the layout 'hf'"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0: it must be positive"),
    ],
)
def test_what_cannot_be_written_is_told_before(options, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        write_published(a_set(SOFT), tmp_path / "set", **options)
    rows = Coreset(jnp.ones((3, 4)), jnp.ones((3, 2)), jnp.zeros(()), Identity())
    with pytest.raises(ValueError, match="no images"):
        write_published(rows, tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_of_what_could_not_be_written(tmp_path, monkeypatch):
    needs("mtt")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_published(a_set(SOFT), tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


class Npy(AbstractLayout):
    """A layout of one's own."""

    names = r".*\.npy"
    stored: tuple[Any, ...] = (SOFT,)

    def read(self, path):
        return [StoredSet(np.load(path, allow_pickle=False), *self.stored)]


def test_a_layout_is_added_in_one_place(tmp_path, monkeypatch):
    monkeypatch.setattr(LAYOUTS, "_makers", dict(LAYOUTS._makers))
    LAYOUTS.register("npy", Npy)
    np.save(tmp_path / "set.npy", IMAGES)
    assert load(tmp_path).layout == "npy"
