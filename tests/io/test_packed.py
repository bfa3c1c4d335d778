"""Sets stored in integers of a few bits: files of their size, read without the library."""

import collections
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from _corrupt import mutated, put
from safetensors import safe_open
from safetensors.numpy import load_file, save as serialize

from _stored import CLASSES, TABLE, a_start
from rcig_eqx import Coreset, DistillResult, export, load_export, load_result
from rcig_eqx._coreset import fold_temperature
from rcig_eqx.data import DataError, Identity, standardize
from rcig_eqx.io._export import ARRAYS, CARD
from rcig_eqx.io._files import checksum, file_checksum
from rcig_eqx.parameterizations import Quantized, compact
from rcig_eqx.parameterizations._packed import Packed

NAMES = tuple(f"class {i}" for i in range(CLASSES))


def make(name: str = "compact") -> DistillResult:
    """What a run with a parameterization returns."""
    start, made = a_start(), TABLE[name]
    psi = made.encode(start)
    packed = Packed(made.pack(psi), made.layout(psi) or {}).folded()
    preprocess = standardize(np.random.default_rng(0).random((20, 7, 9, 3)).astype(np.float32))
    start = dataclasses.replace(start, preprocess=preprocess)
    recipe = {"dataset": "t", "steps": 4, "steps_done": 4, "bits": packed.bits, "long": "x" * 9999}
    recipe |= {"bits_per_class": packed.bits // CLASSES, "model": {"width": 4, "depth": 1}}
    history = {"loss": np.arange(4, dtype=np.float32)}
    draws = np.asarray(start.images)[None]
    sets = packed.coreset(start), start, start
    return DistillResult(*sets, NAMES, recipe, history, draws=draws, packed=packed)


def same(a: Coreset, b: Coreset) -> bool:
    fields = ("images", "labels", "log_temperature")
    pairs = ([np.asarray(getattr(x, field)) for x in (a, b)] for field in fields)
    return all(x.dtype == y.dtype and x.tobytes() == y.tobytes() for x, y in pairs)


# The file of a result


@pytest.mark.parametrize("name", TABLE)
def test_a_packed_result_is_loaded_bit_for_bit(name, tmp_path):
    result = make(name)
    path = result.save(tmp_path / "set")
    loaded = load_result(path)
    for field in ("coreset", "last", "baseline"):
        assert same(getattr(loaded, field), getattr(result, field))
    assert loaded.recipe == result.recipe
    assert len(loaded.baselines) == 2
    assert loaded.save(tmp_path / "again").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", TABLE)
def test_a_file_of_the_set_alone_is_as_small_as_its_bits(name, tmp_path):
    result = make(name)
    path = result.save(tmp_path / "set", whole=False)
    assert result.packed is not None
    preprocess = 2 * 3 * 4
    assert 0 <= path.stat().st_size - preprocess - result.packed.bits / 8 < 2048
    loaded = load_result(path)
    assert same(loaded.coreset, result.coreset)
    assert loaded.baselines == ()
    assert len(loaded.last.images) == 0
    assert loaded.recipe["bits"] == result.packed.bits
    assert loaded.save(tmp_path / "again", whole=False).read_bytes() == path.read_bytes()


def test_a_set_of_floats_is_stored_alone_too(tmp_path):
    result = dataclasses.replace(make(), packed=None)
    path = result.save(tmp_path / "set", whole=False)
    loaded = load_result(path)
    assert same(loaded.coreset, result.coreset)
    assert loaded.packed is None
    assert loaded.baselines == ()


def test_another_set_in_a_result_is_stored_as_it_is(tmp_path):
    result = make()
    other = dataclasses.replace(result.coreset, labels=result.coreset.labels + 1)
    replaced = dataclasses.replace(result, coreset=other)
    assert replaced.stored is None
    assert same(load_result(replaced.save(tmp_path / "set")).coreset, other)
    loaded = load_export(export(replaced, tmp_path / "e"))
    assert np.array_equal(loaded.coreset.labels, other.labels)


def test_labels_take_the_temperature_where_they_are_stored():
    start = a_start()
    made = compact()
    psi = made.encode(start)
    packed = Packed(made.pack(psi), made.layout(psi)).folded().coreset(start)
    expected = fold_temperature(made.decode(psi))
    np.testing.assert_allclose(packed.labels, expected.labels, rtol=1e-5, atol=1e-6)
    assert float(packed.log_temperature) == 0


# An export


READ = """
import sys
sys.modules |= dict.fromkeys(("rcig_eqx", "jax", "jaxlib", "equinox"))
sys.path.insert(0, sys.argv[1])
import numpy as np
from read import load
images, labels = load(sys.argv[1])
np.savez(sys.argv[2], images=images, labels=labels)
"""


@pytest.mark.parametrize("name", TABLE)
def test_an_export_is_read_without_the_library_bit_for_bit(name, tmp_path):
    pytest.importorskip("matplotlib")
    result = make(name)
    folder = export(result, tmp_path / "e")
    loaded = load_export(folder)
    run = [sys.executable, "-I", "-c", READ, folder, tmp_path / "read.npz"]
    subprocess.run(run, check=True, cwd=tmp_path)
    read = np.load(tmp_path / "read.npz")
    for field in ("images", "labels"):
        wanted = np.asarray(getattr(result.coreset, field)).tobytes()
        assert np.asarray(getattr(loaded.coreset, field)).tobytes() == wanted
        assert read[field].tobytes() == wanted
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    card = json.loads((folder / CARD).read_text())
    assert result.packed is not None
    assert card["storage"]["bits"] == result.packed.bits
    arrays = load_file(folder / ARRAYS)
    stored = sum(a.nbytes for n, a in arrays.items() if not n.startswith("preprocess"))
    assert card["bytes"]["images"] + card["bytes"]["labels"] == stored
    assert 0 <= stored - result.packed.bits / 8 < 4
    size = (folder / ARRAYS).stat().st_size - card["bytes"]["preprocess"]
    assert size - result.packed.bits / 8 < 1024
    readme = (folder / "README.md").read_text()
    assert f"{card['storage']['bits_per_class']:,} bits per class" in readme
    assert "from read import load" in readme
    assert export(result, folder, overwrite=True) == folder


# Hostile files


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    pytest.importorskip("matplotlib")
    return export(make("basis of few bits"), tmp_path_factory.mktemp("export") / "e")


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "e")


def sign(folder, card: dict[str, Any]) -> None:
    """Write a card with right sizes and checksums, whatever it says."""
    card.pop("sha256", None)
    path = folder / ARRAYS
    card["files"][ARRAYS] = {"bytes": path.stat().st_size, "sha256": file_checksum(path)}
    card["sha256"] = checksum(card, {})
    (folder / CARD).write_text(json.dumps(card))


def array(name, value):
    def change(storage, arrays):
        arrays[name] = value

    return change


def enlarged(size, n=12):
    """Images of one number each, interpolated to a size."""

    def change(storage, arrays):
        storage["images"]["numbers"] = {"array": "images", "shape": [n, 1, 1, 3], "bits": 32}
        storage["images"]["then"] = [{"stage": "linear", "size": size}]

    return change


F32 = np.float32
BASIS, TOP = ("images", "then", 0), ("labels", "then", 0)
HOSTILE = {
    "no numbers": (put("images", value={"then": []}), "no numbers, then"),
    "more parts": (put("images", "numbers", "more", value=1), "or has more"),
    "a list": (put("images", value=[]), "no numbers, then"),
    "9 bits": (put("images", "numbers", "bits", value=9), r"9, no whole number in 1\.\.8"),
    "bits of text": (put("images", "numbers", "bits", value="6"), "no whole number"),
    "bits true": (put("images", "numbers", "bits", value=True), "no whole number"),
    "no bits": (put("labels", "numbers", "bits", value=0), "no whole number"),
    "endless numbers": (put("images", "numbers", "shape", value=[2**29, 4]), "no whole number"),
    "a number less": (put("images", "numbers", "shape", value=[11, 4]), "storage makes"),
    "negative numbers": (put("images", "numbers", "shape", value=[-12, -4]), "no whole number"),
    "a shape of one": (put("images", "numbers", "shape", value=[48]), "2 to 6 axes"),
    "another place": (put("images", "numbers", "array", value="../x"), "no name of an array"),
    "arrays of labels": (put("images", "numbers", "array", value="labels"), "no name of an array"),
    "an array twice": (put("images", "numbers", "range", value="images"), "used twice"),
    "an array that is not there": (put("images", "numbers", "array", value="images.9.x"), "images"),
    "endless steps": (put("images", "then", value=[{}] * 1000), "list of up to 8"),
    "an unknown step": (put(*BASIS, "stage", value="eval"), "'eval' is no step"),
    "a step of text": (put(*BASIS, value="basis"), "is no step"),
    "a basis of another rank": (put(*BASIS, "basis", "shape", value=[3, 7, 9, 3]), "not fit"),
    "a basis of other images": (put(*BASIS, "basis", "shape", value=[4, 7, 9, 1]), "storage makes"),
    "fewer classes": (put(*TOP, "classes", value=2), r"2, no whole number in 3\.\."),
    "more classes": (put(*TOP, "classes", value=7), "storage makes"),
    "other places": (put(*TOP, "places", "shape", value=[12, 2]), "other places"),
    "wide places": (put(*TOP, "places", "bits", value=32), "no whole number"),
    "a range of nothing": (put(*TOP, "range", value="labels.7.x"), "KeyError"),
    "endless images": (enlarged([4097, 4096]), r"4097, no whole number"),
    "many images": (enlarged([4096, 4096], n=2**20), "does not fit"),
    "images of nothing": (enlarged([512, 512]), "does not fit"),
    "a side of text": (enlarged(["7", 9]), "no whole number"),
    "a side more": (enlarged([7, 9, 1]), "not fit"),
    "smaller images": (enlarged([0, 9]), "no whole number"),
    "other words": (put("how", value="rm -rf"), "something else of itself"),
    "other bits": (put("bits", value=3), "something else of itself"),
    "more words": (put("more", value=3), "something else of itself"),
    "another array": (array("images.5.more", np.zeros(2, F32)), "is not expected"),
    "log tau": (array("log_temperature", np.zeros((), F32)), "is not expected"),
    "bytes too few": (array("images", np.zeros(3, np.uint8)), "images is uint8 of shape"),
    "bytes signed": (array("images", np.zeros(36, np.int8)), "images is I8"),
    "a range of three": (array("images.2.range", np.zeros((3, 4), F32)), "range is float32 of"),
    "a range of NaN": (array("labels.1.range", np.full(2, np.nan, F32)), "range holds NaN"),
    "a range without end": (array("labels.1.range", np.full(2, 3e38, F32)), "labels holds NaN"),
    "places beyond": (array("labels.1.places", np.full(14, 255, np.uint8)), "IndexError"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_storage_is_refused(case, folder):
    change, says = HOSTILE[case]
    card, arrays = json.loads((folder / CARD).read_text()), load_file(folder / ARRAYS)
    change(card["storage"], arrays)
    (folder / ARRAYS).write_bytes(serialize(arrays))
    sign(folder, card)
    with pytest.raises(DataError, match="is damaged or of no export") as info:
        load_export(folder)
    assert re.search(says, str(info.value)), str(info.value)


@pytest.mark.parametrize("schema", ["rcig_eqx.export/1", "rcig_eqx.export/3"])
def test_another_schema_is_refused(schema, folder):
    card = json.loads((folder / CARD).read_text())
    sign(folder, card | {"schema": schema})
    with pytest.raises(DataError, match=r"export/\d', where this version reads .*export/2"):
        load_export(folder)


NOT_OF_RESULTS = ("other words", "other bits", "more words", "log tau")


@pytest.mark.parametrize("case", [case for case in HOSTILE if case not in NOT_OF_RESULTS])
def test_hostile_storage_of_a_result_is_refused(case, tmp_path):
    path = make("basis of few bits").save(tmp_path / "set", whole=False)
    with safe_open(path, "numpy") as file:
        card = json.loads(file.metadata()["rcig_eqx"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    own = {n.removeprefix("coreset."): a for n, a in arrays.items() if n.startswith("coreset.")}
    HOSTILE[case][0](card["storage"], own)
    if case in ("a number less", "a basis of other images", "more classes"):  # a set of that size
        return
    arrays |= {f"coreset.{name}": a for name, a in own.items()}
    card.pop("sha256")
    card["sha256"] = checksum(card, arrays)
    path.write_bytes(serialize(arrays, {"rcig_eqx": json.dumps(card)}))
    with pytest.raises(DataError, match="is damaged or no distilled set"):
        load_result(path)


@pytest.mark.parametrize("cases", [150, pytest.param(5000, marks=pytest.mark.slow)])
def test_forged_storage_is_refused_or_can_be_used(cases, folder):
    rng = np.random.default_rng(0)
    whole, seen = json.loads((folder / CARD).read_text()), collections.Counter()
    for _ in range(cases):
        sign(folder, whole | {"storage": mutated(whole["storage"], rng)})
        try:
            loaded = load_export(folder)
        except DataError:
            seen["refused"] += 1
            continue
        seen["read"] += 1
        assert np.isfinite(loaded.coreset.images).all()
        assert loaded.coreset.images.shape == (12, 7, 9, 3)
    assert seen["refused"] > cases / 2


def test_a_set_stands_for_itself_alone():
    start, made = (
        Coreset(jnp.ones((4, 2, 2, 1)), jnp.eye(4), jnp.zeros(()), Identity()),
        Quantized(),
    )
    psi = made.encode(start)
    packed = Packed(made.pack(psi), made.layout(psi))
    of = packed.coreset(start)
    assert packed.is_of(of)
    assert not packed.is_of(dataclasses.replace(of, images=of.images.at[0, 0, 0, 0].add(1e-6)))
    assert not packed.is_of(dataclasses.replace(of, images=jr.normal(jr.key(0), (4, 4, 1))))
