import collections
import dataclasses
import errno
import json
import os
import pickle
import re
import shutil
import stat
import subprocess
import sys

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from _corrupt import damaged, every_byte, mutated, put
from safetensors.numpy import load_file, save as serialize

from rcig_eqx import Coreset, DistillResult, export, load_export, load_result
from rcig_eqx.data import (
    DataError,
    Identity,
    Records,
    Standardize,
    standardize,
    write_records,
    zca,
)
from rcig_eqx.evaluation import Evaluation
from rcig_eqx.evaluation._train_network import training_recipe
from rcig_eqx.io import _export, _files
from rcig_eqx.io._export import ARRAYS, CARD, count_bytes
from rcig_eqx.io._files import checksum, file_checksum
from rcig_eqx.models import AbstractNetwork, Head, convnet_for
from rcig_eqx.parameterizations import Quantized
from rcig_eqx.parameterizations._packed import Packed

pytest.importorskip("matplotlib")

NAMES = ("T-shirt/top", "dög", "../ox")
PREPROCESS = {
    "identity": lambda images: Identity(),
    "standardize": standardize,
    "zca": zca,
    "zca_blocks": lambda images: zca(images, block=2),
}


def make(kind: str = "zca", *, per_class: int = 2) -> DistillResult:
    rng = np.random.default_rng(0)
    preprocess = PREPROCESS[kind](rng.integers(0, 256, (20, 4, 6, 3)).astype(np.uint8))
    n = per_class * len(NAMES)
    images, labels = jr.normal(jr.key(0), (n, 4, 6, 3)), jr.normal(jr.key(1), (n, 3))
    coreset = Coreset(images, labels, jnp.zeros(()), preprocess, flip=True)
    recipe = {"dataset": "/home/someone/shades.npz", "steps": 4, "steps_done": 3, "rate": np.inf}
    recipe["model"] = {"name": "ConvNet", "width": 5, "depth": 1}
    return DistillResult(coreset, coreset, coreset, NAMES, recipe, {})


def measured(model=None) -> Evaluation:
    model = model or convnet_for((4, 6, 3), 3, width=4, depth=2, softplus=None)
    numbers = (np.array([0.25, 0.75]), np.array([[0.0, np.nan, 1.0], [0.5, np.nan, 1.0]]))
    return Evaluation(
        *numbers,
        NAMES,
        30,
        baseline=Evaluation(*numbers, NAMES, 30),
        training=training_recipe(model, steps=30, learning_rate=0.01),
        tested_on={"dataset": "shades", "images": 8, "key": [0, 1]},
    )


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return export(make(), tmp_path_factory.mktemp("export") / "new" / "e", evaluation=measured())


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "e")


def sign(folder, card=None) -> None:
    """Write a card with right sizes and checksums, whatever else it and the files say."""
    card = json.loads((folder / CARD).read_text()) if card is None else card
    card.pop("sha256", None)
    if isinstance(card.get("files"), dict) and isinstance(card["files"].get(ARRAYS), dict):
        path = folder / ARRAYS
        card["files"][ARRAYS] = {"bytes": path.stat().st_size, "sha256": file_checksum(path)}
    card["sha256"] = checksum(card, {})
    (folder / CARD).write_text(json.dumps(card))


def same(loaded, result) -> bool:
    leaves = [jax.tree.leaves(x.coreset) for x in (loaded, result)]
    return loaded.class_names == result.class_names and all(
        np.array_equal(x, y) for x, y in zip(*leaves, strict=True)
    )


@pytest.mark.parametrize("kind", PREPROCESS)
def test_what_is_exported_is_loaded_bit_for_bit(kind, tmp_path):
    result, evaluation = make(kind), measured()
    loaded = load_export(export(result, tmp_path / "e", evaluation=evaluation))
    assert jax.tree.structure(loaded.coreset) == jax.tree.structure(result.coreset)
    assert same(loaded, result)
    assert loaded.evaluation is not None
    assert loaded.evaluation.to_json() == evaluation.to_json()
    np.testing.assert_array_equal(loaded.evaluation.per_class, evaluation.per_class)
    plain = load_file(tmp_path / "e" / ARRAYS)
    assert np.array_equal(plain["images"], np.asarray(result.coreset.images))


def test_the_card_says_what_is_needed(folder):
    text = (folder / CARD).read_text()
    card = json.loads(text, parse_constant=pytest.fail)
    assert card["dataset"] == {"name": "shades.npz", "class_names": list(NAMES)}
    assert "someone" not in text + (folder / "README.md").read_text()
    assert card["images"]["shape"] == [6, 4, 6, 3]
    assert card["images"]["flip"] is True
    assert card["preprocess"]["kind"] == "zca"
    training = card["training"]
    assert (training["steps"], training["batch_size"]) == (30, 256)
    assert training["learning_rate"].items() >= {"peak": 0.01, "warmup_steps": 15}.items()
    assert training["learning_rate"]["final"] == pytest.approx(1e-4)
    network = {"width": 4, "depth": 2, "padding": [1, 1], "activation": "relu"}
    assert training["network"].items() >= network.items()
    assert card["evaluation"]["accuracies"] == [0.25, 0.75]
    assert card["evaluation"]["per_class"] == {
        NAMES[0]: [0.0, 0.5], NAMES[1]: None, NAMES[2]: [1.0, 1.0]
    }  # fmt: skip
    assert card["evaluation"]["baseline"]["mean"] == 0.5
    assert card["versions"].keys() >= {"rcig-eqx", "jax"}
    pictures = {"grid.png", *(f"class-{i:03d}.png" for i in range(3))}
    assert card["files"].keys() == pictures | {ARRAYS, "README.md", "read.py", "dataset.py"}
    assert {path.name for path in folder.iterdir()} == {CARD, *card["files"]}
    assert not list(folder.parent.glob(".*"))


def packed(result: DistillResult) -> DistillResult:
    """The same in integers of 8 bits."""
    made = Quantized(8)
    psi = made.encode(result.coreset)
    stored = Packed(made.pack(psi), made.layout(psi) or {})
    return dataclasses.replace(result, coreset=stored.coreset(result.coreset), packed=stored)


DATASET = """
import numpy as np
from dataset import Distilled
for mirrored in (None, False):
    made = Distilled(".", mirrored=mirrored)
    image, label = made[len(made) - 1]
    print(len(made), *image.shape, *label.shape, float(np.asarray(image)[1, 2, 0]))
"""


@pytest.mark.parametrize("kind", ["plain", "packed"])
@pytest.mark.parametrize("torch", [False, True])
def test_the_folder_has_a_dataset_that_needs_no_pytorch(kind, torch, tmp_path):
    """In a process of its own, without this library."""
    if torch:
        pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    result = make() if kind == "plain" else packed(make())
    folder = export(result, tmp_path / "e")
    hide = "" if torch else "import sys; sys.modules['torch'] = None\n"
    code = f"{hide}import sys; sys.modules['rcig_eqx'] = None\n{DATASET}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    images = np.asarray(result.coreset.images)
    lines = [line.split() for line in done.stdout.splitlines()]
    for (count, *shape, value), column in zip(lines, (-1, 0), strict=True):
        assert int(count) == len(images) * (2 if column else 1)
        assert shape == ["3", "4", "6", "3"]  # [c h w], [classes]
        assert float(value) == images[-1, 2, column, 1]


def test_without_an_evaluation_the_recipe_is_the_papers(tmp_path):
    loaded = load_export(export(make(), tmp_path / "e"))
    assert loaded.evaluation is None
    training = loaded.card["training"]
    assert training["steps"] == 1000
    assert training["learning_rate"].items() >= {"peak": 1e-4, "warmup_steps": 500}.items()
    network = {"width": 5, "depth": 1, "activation": "relu"}  # as distilled
    assert training["network"].items() >= network.items()
    assert "Not measured." in (tmp_path / "e" / "README.md").read_text()


def test_the_people_s_card_shows_pictures_and_numbers(folder):
    text = (folder / "README.md").read_text()
    for part in ("grid.png", "class-002.png", "50.00% ± 35.36%", "25.00%, 75.00%", "mirror"):
        assert part in text
    image = pytest.importorskip("PIL.Image")
    with image.open(folder / "class-000.png") as picture:  # two of 4×6, a gap, each pixel 21×21
        assert picture.size == (13 * 21, 4 * 21)


@pytest.mark.parametrize("kind", PREPROCESS)
def test_bytes_are_counted(kind, tmp_path):
    """All of the arrays, each once, the preprocessing included."""
    folder = export(make(kind), tmp_path / "e")
    card, arrays = json.loads((folder / CARD).read_text()), load_file(folder / ARRAYS)
    size = card["bytes"]
    d = 4 * 6 * 3
    tile = 2 * 2 * 3
    preprocess = {
        "identity": 0,
        "standardize": 2 * 3,
        "zca": 2 * 3 + 2 * d + d * d,
        "zca_blocks": 2 * 3 + 2 * tile + tile * tile,
    }
    assert size["images"] == 4 * 6 * d
    assert size["labels"] == 4 * 6 * 3
    assert size["preprocess"] == 4 * preprocess[kind]
    assert size["total"] == sum(array.nbytes for array in arrays.values())
    assert size["real_images_of_as_many_bytes"] == size["total"] // (d + 1)
    header = (folder / ARRAYS).stat().st_size - size["total"]
    assert 0 < header < 1000
    assert size == count_bytes(arrays)


def test_another_network_is_named(tmp_path):
    class Linear(AbstractNetwork):
        head: Head

        def features(self, images):
            return images.reshape(len(images), -1)

    evaluation = measured(lambda key: Linear(Head(72, 3, key=key)))
    loaded = load_export(export(make(), tmp_path / "e", evaluation=evaluation))
    assert loaded.card["training"]["network"] == {"name": "Linear"}
    assert "Linear" in (tmp_path / "e" / "README.md").read_text()


def test_nothing_is_replaced_unasked(folder, tmp_path):
    before = (folder / CARD).read_bytes()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        export(make(), folder)
    assert (folder / CARD).read_bytes() == before
    other = tmp_path / "precious"
    other.mkdir()
    (other / "thesis.txt").touch()
    with pytest.raises(FileExistsError, match="no export"):
        export(make(), other, overwrite=True)
    with pytest.raises(FileExistsError, match="no export"):
        export(make(), other / "thesis.txt", overwrite=True)
    assert (other / "thesis.txt").exists()
    images, labels = np.zeros((3, 4, 6, 3), np.uint8), np.arange(3)
    records = write_records((images, labels), tmp_path / "records", progress=False)
    with pytest.raises(FileExistsError, match="no export"):  # though it has a card.json as well
        export(make(), records.folder, overwrite=True)
    assert len(Records(records.folder)) == 3
    shutil.rmtree(records.folder)
    (folder / "notes.txt").touch()
    with pytest.raises(FileExistsError, match=r"notes\.txt, which is no part of an export"):
        export(make(), folder, overwrite=True)
    (folder / "notes.txt").unlink()
    export(make("identity"), folder, overwrite=True)
    assert same(load_export(folder), make("identity"))
    assert os.listdir(tmp_path) == ["e", "precious"] or os.listdir(tmp_path) == ["precious", "e"]
    (tmp_path / "empty").mkdir()
    assert same(load_export(export(make(), tmp_path / "empty")), make())


@pytest.mark.parametrize("at", range(9))
def test_a_full_disk_at_any_file_leaves_the_earlier_export(at, folder, monkeypatch):
    """Seven files are written one after the other, then two folders renamed."""
    calls, fsync = 0, os.fsync

    def full_at(real):
        def call(*arguments):
            nonlocal calls
            if real is fsync and not stat.S_ISREG(os.fstat(*arguments).st_mode):
                return real(*arguments)  # of a folder: a courtesy, whose failure is let pass
            calls += 1
            if calls == at + 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*arguments)

        return call

    monkeypatch.setattr(os, "fsync", full_at(os.fsync))
    monkeypatch.setattr(type(folder), "rename", full_at(type(folder).rename))
    with pytest.raises(
        OSError, match=r"could not export to .*/e: No space left.*free some"
    ) as info:
        export(make("identity"), folder, overwrite=True)
    assert info.value.errno == errno.ENOSPC
    assert same(load_export(folder), make())
    assert os.listdir(folder.parent) == ["e"]


def test_what_cannot_be_written_to_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"could not export to .*another place"):
        export(make(), tmp_path / "file" / "e")


def test_an_evaluation_of_another_result_is_refused(tmp_path):
    for other in (
        dataclasses.replace(measured(), class_names=("a", "b", "c")),
        dataclasses.replace(measured(), training={}),
    ):
        with pytest.raises(ValueError, match="pass what evaluate"):
            export(make(), tmp_path / "e", evaluation=other)
    assert not (tmp_path / "e").exists()


def test_without_pictures_there_is_a_note_and_an_export(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.warns(RuntimeWarning, match=r"No picture: .*pip install 'rcig-eqx\[plot\]'"):
        folder = export(make(), tmp_path / "e")
    assert same(load_export(folder), make())
    assert {path.name for path in folder.iterdir()} == {
        CARD, ARRAYS, "README.md", "read.py", "dataset.py",
    }  # fmt: skip
    assert ".png" not in (folder / "README.md").read_text()


def test_half_done_pictures_are_not_exported(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no memory")

    monkeypatch.setattr(_export, "save_class", fail)
    with pytest.warns(RuntimeWarning, match="No picture: no memory"):
        folder = export(make(), tmp_path / "e")
    assert not list(folder.glob("*.png"))
    load_export(folder)


def test_names_are_text_in_the_people_s_card(tmp_path):
    hostile = ("<img src=x onerror=alert(1)>", "a|b\n# c `$x$", "[d](http://e) *f* __g__")
    result = dataclasses.replace(make(), class_names=hostile)
    result.recipe["dataset"] = "<b>|data"
    text = (export(result, tmp_path / "e") / "README.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("|") and ".png" in line]
    assert len(rows) == 3
    assert all(row.count("|") == 3 and row.count("![") == 1 for row in rows)
    for markup in ("<", "*f*", "__g__", "$x$", "](http", "\n# c"):
        assert markup not in text.replace(" < ", "")
    assert "&#60;img src&#61;x onerror&#61;alert(1)&#62;" in text
    assert load_export(tmp_path / "e").class_names == hostile


UNREADABLE = {
    "NaN": lambda r: dataclasses.replace(r.coreset, labels=r.coreset.labels * np.nan),
    "infinite": lambda r: dataclasses.replace(r.coreset, images=r.coreset.images / 0),
}


@pytest.mark.parametrize("case", [*UNREADABLE, "names twice", "an empty name", "too large", "long"])
def test_what_would_not_be_read_is_not_written(case, tmp_path, monkeypatch):
    result = make()
    names = {"names twice": ("a", "a", "b"), "an empty name": ("a", "", "b")}.get(case, NAMES)
    coreset = UNREADABLE[case](result) if case in UNREADABLE else result.coreset
    if case == "too large":
        monkeypatch.setattr(_export, "MAX_FILE", _files.MAX_TEXT + 1000)
    if case == "long":
        monkeypatch.setattr(_files, "MAX_TEXT", 1000)
    with pytest.raises(ValueError, match=r"rename|NaN or infin|result\.save|shorten") as info:
        export(dataclasses.replace(result, coreset=coreset, class_names=names), tmp_path / "e")
    assert not isinstance(info.value, DataError)
    assert not os.listdir(tmp_path)


def test_a_card_of_many_classes_is_read(tmp_path):
    names = tuple(f"a class of a rather long name, number {i}" for i in range(200))
    n = len(names)
    coreset = Coreset(jnp.zeros((n, 1, 1, 1)), jnp.zeros((n, n)), jnp.zeros(()), Identity())
    recipe = {"steps": 1, "steps_done": 1, "model": {"name": "ConvNet", "width": 1, "depth": 1}}
    recipe["notes"] = "x" * 2**20
    result = DistillResult(coreset, coreset, coreset, names, recipe, {})
    folder = export(result, tmp_path / "e")
    assert (folder / CARD).stat().st_size > 2**20
    assert load_export(folder).class_names == names


def test_what_is_put_there_meanwhile_stays(folder, monkeypatch):
    """Between the look at the folder and its replacement, and after the last look."""
    write = _export.save_grid

    def put(*arguments, **options):
        (folder / "thesis.txt").write_text("mine")
        return write(*arguments, **options)

    monkeypatch.setattr(_export, "save_grid", put)
    with pytest.raises(FileExistsError, match=r"e holds thesis\.txt, which is no part"):
        export(make("identity"), folder, overwrite=True)
    assert (folder / "thesis.txt").read_text() == "mine"
    assert os.listdir(folder.parent) == ["e"]
    (folder / "thesis.txt").unlink()
    assert same(load_export(folder), make())
    monkeypatch.setattr(_export, "save_grid", write)

    rename = type(folder).rename

    def put_after(path, target):
        if path.name == "new":
            (path.parent / "old" / "thesis.txt").write_text("mine")
        return rename(path, target)

    monkeypatch.setattr(type(folder), "rename", put_after)
    with pytest.warns(RuntimeWarning, match="of no export"):
        export(make("identity"), folder, overwrite=True)
    assert same(load_export(folder), make("identity"))
    (kept,) = folder.parent.rglob("thesis.txt")
    assert kept.read_text() == "mine"


def test_two_exports_at_once_leave_the_first(tmp_path, monkeypatch):
    write, folder = _export.save_grid, tmp_path / "e"

    def other(*arguments, **options):
        monkeypatch.setattr(_export, "save_grid", write)
        export(make("identity"), folder)
        return write(*arguments, **options)

    monkeypatch.setattr(_export, "save_grid", other)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        export(make(), folder)
    assert same(load_export(folder), make("identity"))
    assert os.listdir(tmp_path) == ["e"]


def array(name, value):
    def change(card, folder):
        arrays = load_file(folder / ARRAYS)
        arrays.pop(name, None)
        if value is not None:
            arrays[name] = np.asarray(value, order="C")
        (folder / ARRAYS).write_bytes(serialize(arrays))

    return change


def file(name, content):
    """A file the card lists with its right size and checksum."""

    def change(card, folder):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        card["files"][name] = {"bytes": len(content), "sha256": file_checksum(path)}

    return change


def linked(card, folder):
    (folder / "grid.png").rename(folder.parent / "elsewhere")
    (folder / "grid.png").symlink_to(folder.parent / "elsewhere")


def linked_arrays(card, folder):
    (folder / ARRAYS).rename(folder.parent / "elsewhere")
    (folder / ARRAYS).symlink_to(folder.parent / "elsewhere")


def fifo(card, folder):
    (folder / "grid.png").unlink()
    os.mkfifo(folder / "grid.png")


EXECUTED = f"/tmp/rcig-eqx-executed-{os.getpid()}"


class Evil:
    def __reduce__(self):
        return (os.mkdir, (EXECUTED,))


PICKLED = pickle.dumps(Evil())
LONG_HEADER = (2**40).to_bytes(8, "little") + b"{" + b" " * 100
HOSTILE = {
    "schema of the future": (put("schema", value="rcig_eqx.export/2"), "export/2', where"),
    "schema a list": (put("schema", value=[]), "schema"),
    "path upwards": (file("../outside", b"x"), "no plain file name"),
    "path below": (file("below/inside", b"x"), "no plain file name"),
    "absolute path": (put("files", "/etc/passwd", value={"bytes": 1, "sha256": ""}), "no plain"),
    "name with a null": (put("files", "a\0b", value={"bytes": 1, "sha256": ""}), "no plain"),
    "hidden name": (put("files", ".bashrc", value={"bytes": 1, "sha256": ""}), "no plain"),
    "endless name": (put("files", "a" * 9999, value={"bytes": 1, "sha256": ""}), "no plain"),
    "a picture not listed": (put("pictures", "all", value="/etc/passwd"), "pictures"),
    "a link out": (linked, r"grid\.png .* a link"),
    "the arrays a link out": (linked_arrays, "safetensors .* a link"),
    "a pipe": (fifo, r"grid\.png .* no plain file"),
    "a missing file": (lambda card, folder: (folder / "grid.png").unlink(), r"grid\.png .*No such"),
    "another size": (put("files", "grid.png", "bytes", value=3), r"grid\.png .* bytes"),
    "a huge size": (put("files", "grid.png", "bytes", value=10**30), "no size"),
    "another checksum": (put("files", "grid.png", "sha256", value="0" * 64), "grid.* checksum"),
    "a pickle": (file(ARRAYS, PICKLED), "safetensors is damaged"),
    "a huge header": (file(ARRAYS, LONG_HEADER), "header claims 1099511627776 bytes"),
    "an empty file": (file(ARRAYS, b""), "safetensors is damaged"),
    "no images": (array("images", None), "images"),
    "no labels": (array("labels", None), "labels"),
    "no eigenvectors": (array("preprocess.eigenvectors", None), "eigenvectors"),
    "another array": (array("more", np.zeros(3, np.float32)), "more .* not expected"),
    "images of halves": (array("images", np.zeros((6, 4, 6, 3), np.float16)), "F16, not float32"),
    "images without channels": (array("images", np.zeros((6, 4, 6), np.float32)), "has shape"),
    "other images": (array("images", np.zeros((9, 4, 6, 3), np.float32)), "images has shape"),
    "other labels": (array("labels", np.zeros((6, 4), np.float32)), "labels has shape"),
    "NaN": (array("labels", np.full((6, 3), np.nan, np.float32)), "labels holds NaN"),
    "other mean": (array("preprocess.mean", np.zeros(1, np.float32)), "mean has shape"),
    "no spread": (array("preprocess.std", np.zeros(3, np.float32)), "not finite"),
    "negative eigenvalues": (
        array("preprocess.eigenvalues", -np.ones(72, np.float32)), "not finite"
    ),
    "no images in it": (put("images", "shape", value=[0, 4, 6, 3]), "no whole number"),
    "endless images": (put("images", "shape", value=[2**60, 4, 6, 3]), "no whole number"),
    "flip a string": (put("images", "flip", value="no"), "images lacks parts"),
    "class names twice": (put("dataset", "class_names", value=["a", "a", "b"]), "distinct"),
    "class names a string": (put("dataset", "class_names", value="abc"), "dataset lacks"),
    "fewer classes": (put("dataset", "class_names", value=["a", "b"]), "classes"),
    "preprocessing of arrays unused": (put("preprocess", "kind", value="standardize"), "not use"),
    "unknown preprocessing": (put("preprocess", "kind", value="os.system"), "unknown"),
    "another formula": (put("preprocess", "forward", value="x = 0"), "another forward"),
    "another regularization": (put("preprocess", "regularization", value="0.1"), "regularization"),
    "no steps": (put("training", "steps", value=0), "no training steps"),
    "endless rate": (put("training", "learning_rate", "peak", value=10**400), "training lacks"),
    "rising rate": (put("training", "learning_rate", "final", value=1.0), "peak and a smaller"),
    "no width": (put("training", "network", "width", value=0), "no width"),
    "endless depth": (put("training", "network", "depth", value=10**6), "no width"),
    "an accuracy over one": (put("evaluation", "accuracies", value=[0.5, 7]), "fractions"),
    "an accuracy too few": (put("evaluation", "accuracies", value=[0.5]), "no evaluation"),
    "accuracies of text": (put("evaluation", "accuracies", value=["0.2", "0.7"]), "no evaluation"),
    "another mean": (put("evaluation", "mean", value=0.9), "mean"),
    "no accuracy": (put("evaluation", "accuracies", value=[]), "no evaluation"),
    "accuracies of other classes": (put("evaluation", "per_class", value={"a": [0, 0]}), "evaluat"),
    "bytes of another kind": (put("bytes", "images", value=10), "counts other bytes"),
    "files a list": (put("files", value=[]), "files lacks"),
    "files without arrays": (put("files", value={}), "files lacks"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_contents_are_refused(case, folder):
    """Each with right checksums, so that they are not what is noticed."""
    change, says = HOSTILE[case]
    card = json.loads((folder / CARD).read_text())
    change(card, folder)
    sign(folder, card)
    with pytest.raises(DataError, match=r"/e/.* is damaged or of no export: .") as info:
        load_export(folder)
    assert re.search(says, str(info.value)), str(info.value)
    assert not os.path.exists(EXECUTED)


BOMBS = {
    "deep": b"[" * 500_000,
    "deep object": b'{"schema":' * 50_000,
    "a huge integer": b'{"schema": ' + b"9" * 100_000 + b"}",
    "infinity": b'{"schema": 1e999}',
    "NaN": b'{"schema": NaN}',
    "too large": b" " * _files.MAX_TEXT + b"{}",
    "no text": b"\xff\xfe\x00",
    "nothing": b"",
    "a list": b"[]",
    "null": b"null",
    "an empty object": b"{}",
}


@pytest.mark.parametrize("case", BOMBS)
def test_hostile_cards_are_refused(case, folder):
    (folder / CARD).write_bytes(BOMBS[case])
    with pytest.raises(DataError, match=r"card\.json is damaged or of no export"):
        load_export(folder)


def test_what_is_no_folder_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_export(tmp_path / "none")
    with pytest.raises(DataError, match=r"card\.json"):
        load_export(tmp_path)


def test_no_pickle_is_read_or_written(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("pickle was used")

    for name in ("load", "loads", "dump", "dumps", "Unpickler", "Pickler"):
        monkeypatch.setattr(pickle, name, refuse)
    load_export(export(make(), tmp_path / "e"))


def fuzz_bytes(folder, cases: int, *, seed: int) -> dict[str, collections.Counter]:
    """Damage every file in turn; what happened, by file."""
    rng, result = np.random.default_rng(seed), make()
    outcomes: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for _ in range(cases):
            path.write_bytes(damaged(content, rng))
            try:
                loaded = load_export(folder)
            except DataError as error:
                outcomes[path.name]["refused" if path.name in str(error) else "misnamed"] += 1
            else:
                outcomes[path.name]["identical" if same(loaded, result) else "changed"] += 1
        path.write_bytes(content)
    return outcomes


def fuzz_signed(folder, cases: int, *, seed: int) -> collections.Counter:
    """Change cards and arrays, with checksums to match: refused, or a set that can be used."""
    rng, outcomes = np.random.default_rng(seed), collections.Counter()
    original, card = (folder / ARRAYS).read_bytes(), json.loads((folder / CARD).read_text())
    for i in range(cases):
        (folder / ARRAYS).write_bytes(damaged(original, rng) if i % 4 == 0 else original)
        changed = json.loads(json.dumps(card)) if i % 4 == 0 else mutated(card, rng)
        sign(folder, changed)
        try:
            loaded = load_export(folder)
        except DataError:
            outcomes["refused"] += 1
            continue
        outcomes["identical" if same(loaded, make()) else "another valid set"] += 1
        gray = jnp.full((1, *loaded.coreset.images.shape[1:]), 0.5)
        preprocess = loaded.coreset.preprocess
        assert preprocess is not None
        for x in (loaded.coreset.images, loaded.coreset.labels, preprocess(gray)):
            assert jnp.isfinite(x).all()
        training = loaded.card["training"]
        assert training["learning_rate"]["warmup_steps"] < training["steps"]
        assert loaded.coreset.labels.shape == (len(loaded.coreset.images), len(loaded.class_names))
    return outcomes


def test_no_single_corrupt_byte_gets_through(tmp_path):
    """Of any byte of any file: it is refused, or changes nothing (white space of the card)."""
    folder = tiny(tmp_path / "e")
    card = load_export(folder).card
    for path in sorted(folder.iterdir()):
        content, refused = path.read_bytes(), 0
        for changed in every_byte(content):
            path.write_bytes(changed)
            try:
                loaded = load_export(folder)
            except DataError as error:
                refused += path.name in str(error)
            else:
                assert path.name == CARD
                assert loaded.card == card
        path.write_bytes(content)
        assert refused >= (0.5 if path.name == CARD else 1) * len(content)


def tiny(folder):
    """An export of two classes, with pictures and scripts of a few bytes."""
    coreset = Coreset(jnp.ones((2, 1, 1, 1)), jnp.ones((2, 2)), jnp.zeros(()), Identity())
    recipe = {"steps": 1, "steps_done": 1, "model": {"name": "ConvNet", "width": 1, "depth": 1}}
    result = DistillResult(coreset, coreset, coreset, ("a", "b"), recipe, {})
    export(result, folder)
    for file in (*folder.glob("*.png"), *folder.glob("*.py")):
        file.write_bytes(file.read_bytes()[:20])
    card = json.loads((folder / CARD).read_text())
    for name in card["files"]:
        path = folder / name
        card["files"][name] = {"bytes": path.stat().st_size, "sha256": file_checksum(path)}
    sign(folder, card)
    return folder


def test_damaged_files_are_refused_or_change_nothing(folder):
    outcomes = fuzz_bytes(folder, 40, seed=0)
    assert len(outcomes) == 9
    for name, counts in outcomes.items():
        assert counts["refused"] >= (30 if name == CARD else 40), (name, counts)
        assert counts["refused"] + counts["identical"] == 40, (name, counts)


def test_forged_files_are_refused_or_can_be_used(folder):
    outcomes = fuzz_signed(folder, 200, seed=0)
    assert outcomes["refused"] > 50, outcomes
    assert outcomes["identical"] > 10, outcomes


@pytest.mark.slow
def test_thousands_of_damaged_and_forged_files(folder, capsys):
    damage = fuzz_bytes(folder, 1000, seed=1)
    forged = fuzz_signed(folder, 4000, seed=1)
    with capsys.disabled():
        for name, counts in damage.items():
            print(f"\n{name}: {dict(counts)}", end="")
        print(f"\nforged: {dict(forged)}")
    assert sum(counts["refused"] + counts["identical"] for counts in damage.values()) == 7000
    assert forged.total() == 4000


class Halved(Standardize):
    """A preprocessing that is not what it inherits from."""

    def __call__(self, images):
        return Standardize.__call__(self, images) / 2

    def inverse(self, x):
        return Standardize.inverse(self, 2 * x)


def test_own_preprocessing_is_refused_before_any_work(tmp_path):
    result = make("standardize")
    p = result.coreset.preprocess
    assert isinstance(p, Standardize)
    coreset = dataclasses.replace(result.coreset, preprocess=Halved(p.mean, p.std))
    result = dataclasses.replace(result, coreset=coreset)
    with pytest.raises(ValueError, match="class Halved cannot be described to others"):
        export(result, tmp_path / "e")
    result.save(tmp_path / "set")
    with pytest.raises(DataError, match="Halved"):
        load_result(tmp_path / "set")
