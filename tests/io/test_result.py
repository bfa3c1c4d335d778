import collections
import concurrent.futures
import dataclasses
import errno
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from _corrupt import damaged, every_byte, mutated
from safetensors import safe_open
from safetensors.numpy import save as serialize

from rcig_eqx import Coreset, DistillResult, export, load_export, load_result, save_grid
from rcig_eqx.data import AbstractPreprocess, DataError, Identity, standardize, zca
from rcig_eqx.io import _files
from rcig_eqx.io._files import checksum

PREPROCESS = {
    "identity": lambda images: Identity(),
    "standardize": standardize,
    "zca": zca,
    "zca_blocks": lambda images: zca(images, block=2),
}


def make(kind: str = "standardize", *, size: int = 4) -> DistillResult:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, size, size, 3)).astype(np.uint8)
    preprocess = PREPROCESS[kind](images)
    coresets: dict[str, Any] = {
        name: Coreset(
            jr.normal(key, (6, size, size, 3)),
            jr.normal(key, (6, 3)),
            jr.normal(key),
            preprocess,
            flip=True,
        )
        for name, key in zip(("coreset", "last", "baseline"), jr.split(jr.key(0), 3), strict=True)
    }
    recipe = {"dataset": "t", "steps": 4, "steps_done": 3, "model": {"width": 4}, "flip": None}
    history = {"loss": np.array([3.0, np.nan, 1.0], np.float32)}
    names = ("cat", "dög", "ox")
    return DistillResult(**coresets, class_names=names, recipe=recipe, history=history)


def parts(path) -> tuple[dict, dict[str, np.ndarray]]:
    with safe_open(path, "numpy") as file:
        card = json.loads(file.metadata()["rcig_eqx"])
        return card, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def write(path, card, arrays) -> None:
    """A file with a right checksum, whatever it says."""
    card = {name: value for name, value in card.items() if name != "sha256"}
    card["sha256"] = checksum(card, arrays)
    path.write_bytes(serialize(arrays, {"rcig_eqx": json.dumps(card)}))


@pytest.mark.parametrize("kind", PREPROCESS)
def test_what_is_saved_is_loaded_bit_for_bit(kind, tmp_path):
    result = make(kind)
    path = result.save(tmp_path / "new" / "set.safetensors")
    loaded = load_result(path)
    for field in ("coreset", "last", "baseline"):
        before, after = getattr(result, field), getattr(loaded, field)
        assert jax.tree.structure(before) == jax.tree.structure(after)
        for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
            assert (x.dtype, x.shape) == (y.dtype, y.shape)
            assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
    assert loaded.class_names == result.class_names
    assert loaded.recipe == result.recipe
    assert loaded.interrupted
    assert loaded.history["loss"].tobytes() == result.history["loss"].tobytes()
    assert loaded.save(tmp_path / "again").read_bytes() == path.read_bytes()
    pixels = jnp.full((1, 4, 4, 3), 0.3)
    preprocess = loaded.coreset.preprocess
    assert preprocess is not None
    np.testing.assert_allclose(preprocess.inverse(preprocess(pixels)), pixels, atol=1e-5)


def test_no_pickle_is_read_or_written(tmp_path, monkeypatch):
    import pickle

    def refuse(*_, **__):
        raise AssertionError("pickle was used")

    for name in ("load", "loads", "dump", "dumps", "Unpickler", "Pickler"):
        monkeypatch.setattr(pickle, name, refuse)
    load_result(make().save(tmp_path / "set"))


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_full_disk_leaves_the_earlier_file(where, tmp_path, monkeypatch):
    path = make().save(tmp_path / "set")
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full) if where == "fsync" else monkeypatch.setattr(
        type(path), "replace", full
    )
    with pytest.raises(OSError, match=r"could not write .*No space left.*free some space") as info:
        dataclasses.replace(make(), recipe={"steps": 9, "steps_done": 9}).save(path)
    assert info.value.errno == errno.ENOSPC
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["set"]


def named(names: tuple[str, ...]) -> DistillResult:
    """A result of these classes."""
    n = len(names)
    pre = Identity()
    coreset = Coreset(jnp.zeros((n, 1, 1, 1)), jnp.zeros((n, n)), jnp.zeros(()), pre)
    return dataclasses.replace(make(), coreset=coreset, last=coreset, baseline=coreset,
                               class_names=names)  # fmt: skip


def test_a_header_as_long_as_it_may_be_is_read_and_a_longer_one_not_written(tmp_path, monkeypatch):
    many = named(tuple(f"a class of the name {i} 猫" for i in range(3000)))
    recipe = many.recipe | {"notes": "x" * 2**20}
    many = dataclasses.replace(many, recipe=recipe)
    path = many.save(tmp_path / "set")
    assert int.from_bytes(path.read_bytes()[:8], "little") > 2**20
    assert load_result(path).class_names == many.class_names
    monkeypatch.setattr(_files, "MAX_TEXT", 2**20)
    with pytest.raises(ValueError, match="most of them its recipe") as info:
        many.save(tmp_path / "longer")
    assert not isinstance(info.value, DataError)
    assert os.listdir(tmp_path) == ["set"]


UNREADABLE = {
    "NaN": lambda r: dataclasses.replace(
        r, last=dataclasses.replace(r.last, labels=r.last.labels * np.nan)
    ),
    "other names": lambda r: dataclasses.replace(r, class_names=("a", "b")),
    "no names": lambda r: dataclasses.replace(r, class_names=()),
    "no steps": lambda r: dataclasses.replace(r, recipe={}),
    "a history of matrices": lambda r: dataclasses.replace(r, history={"loss": np.zeros((2, 2))}),
}  # fmt: skip


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_would_not_be_read_is_not_written(case, tmp_path):
    with pytest.raises(ValueError, match="cannot be kept"):
        UNREADABLE[case](make()).save(tmp_path / "set")
    assert not os.listdir(tmp_path)


def test_threads_that_write_one_file_leave_one_whole(tmp_path):
    path = tmp_path / "file"
    parts = [bytes([i]) * 50_000 for i in range(16)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda part: _files.write_atomically(path, part), parts * 4))
    assert path.read_bytes() in parts
    assert os.listdir(tmp_path) == ["file"]


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    result = make(size=8)
    assert result.save("~/new/set") == tmp_path / "new" / "set"
    assert load_result("~/new/set").class_names == result.class_names
    save_grid(result.coreset, result.class_names, "~/grid.png")
    export(result, "~/e")
    assert load_export("~/e").class_names == result.class_names
    assert {path.name for path in tmp_path.iterdir()} >= {"new", "grid.png", "e"}


def test_a_tilde_without_a_home_is_said(monkeypatch):
    def nowhere(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(type(Path()), "expanduser", nowhere)
    result = make()
    for use in (result.save, load_result, load_export, lambda path: export(result, path)):
        with pytest.raises(ValueError, match="no home folder is known"):
            use("~/set")


def test_a_folder_that_is_a_file_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="could not write"):
        make().save(tmp_path / "file" / "set")


def test_own_preprocessing_is_saved_unless_its_arrays_cannot_be(tmp_path):
    class Own(AbstractPreprocess):
        numbers: jax.Array

        def __call__(self, images):
            return jnp.asarray(images)

        def inverse(self, x):
            return jnp.asarray(x)

    def saved(numbers):
        result = make()
        coreset = dataclasses.replace(result.coreset, preprocess=Own(numbers))
        return dataclasses.replace(result, coreset=coreset).save(tmp_path / "set")

    with pytest.raises(ValueError, match="Own cannot be stored"):
        saved(jnp.arange(3))
    path = saved(jnp.ones(3))
    with pytest.raises(DataError, match="Own, which is no part of the library"):
        load_result(path)
    loaded = load_result(path, preprocess=Own(jnp.zeros(3)))
    np.testing.assert_array_equal(loaded.coreset.preprocess.numbers, np.ones(3))  # pyright: ignore


def remove(name):
    def change(card, arrays):
        del arrays[name]

    return change


def array(name, value):
    def change(card, arrays):
        arrays[name] = np.asarray(value, order="C")

    return change


def header(name, value):
    def change(card, arrays):
        card[name] = value

    return change


def nan(card, arrays):
    arrays["last.images"] = arrays["last.images"].copy()
    arrays["last.images"][1, 2, 3, 0] = np.nan


HOSTILE = {
    "no images": remove("coreset.images"),
    "no temperature": remove("last.log_temperature"),
    "no statistics": remove("preprocess.mean"),
    "images without channels": array("coreset.images", np.zeros((6, 4, 4), np.float32)),
    "no images in it": array("coreset.images", np.zeros((0, 4, 4, 3), np.float32)),
    "labels of other length": array("coreset.labels", np.zeros((5, 3), np.float32)),
    "labels of other classes": array("baseline.labels", np.zeros((6, 4), np.float32)),
    "temperature a vector": array("coreset.log_temperature", np.zeros(2, np.float32)),
    "images of integers": array("coreset.images", np.zeros((6, 4, 4, 3), np.int64)),
    "images of halves": array("coreset.images", np.zeros((6, 4, 4, 3), np.float16)),
    "statistics of other channels": array("preprocess.mean", np.zeros(2, np.float32)),
    "statistics of pixels": array("preprocess.mean", np.zeros((4, 4, 3), np.float32)),
    "infinite statistics": array("preprocess.std", np.full(3, np.inf, np.float32)),
    "history a matrix": array("history.loss", np.zeros((2, 2), np.float32)),
    "NaN": nan,
    "format of the future": header("format", "rcig_eqx/99"),
    "format a list": header("format", []),
    "class names a string": header("class_names", "abc"),
    "class names numbers": header("class_names", [1, 2, 3]),
    "class names empty": header("class_names", []),
    "class names an object": header("class_names", {"a": 1, "b": 2, "c": 3}),
    "flip a string": header("flip", "false"),
    "flip a number": header("flip", 1),
    "recipe a list": header("recipe", [1]),
    "recipe null": header("recipe", None),
    "recipe empty": header("recipe", {}),
    "steps a string": header("recipe", {"steps": "4", "steps_done": 3}),
    "preprocess null": header("preprocess", None),
    "preprocess unknown": header("preprocess", {"kind": "pickle"}),
    "preprocess unhashable": header("preprocess", {"kind": []}),
    "preprocess zca without arrays": header("preprocess", {"kind": "zca"}),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_contents_are_refused(case, tmp_path):
    path = make().save(tmp_path / "set")
    card, arrays = parts(path)
    HOSTILE[case](card, arrays)
    write(path, card, arrays)
    with pytest.raises(DataError, match=r"set is damaged or no distilled set: ."):
        load_result(path)


@pytest.mark.parametrize("text", ["{", "[]", "null", "3", '"x"', "[" * 100_000, "{}"])
def test_hostile_headers_are_refused(text, tmp_path):
    path = make().save(tmp_path / "set")
    _, arrays = parts(path)
    path.write_bytes(serialize(arrays, {"rcig_eqx": text}))
    with pytest.raises(DataError, match="damaged"):
        load_result(path)


@pytest.mark.parametrize("metadata", [None, {}, {"other": "x"}])
def test_other_safetensors_files_are_refused(metadata, tmp_path):
    path = tmp_path / "set"
    path.write_bytes(serialize({"x": np.zeros(3)}, metadata))
    with pytest.raises(DataError, match="damaged or no distilled set"):
        load_result(path)


def test_changed_pixels_are_noticed(tmp_path):
    path = make().save(tmp_path / "set")
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="checksum"):
        load_result(path)


def test_truncated_and_random_files_are_refused(tmp_path):
    path = make().save(tmp_path / "set")
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for length in (0, 1, 8, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match="damaged"):
            load_result(path)
        path.write_bytes(rng.bytes(length))
        with pytest.raises(DataError, match="damaged"):
            load_result(path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_result(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        load_result(tmp_path)


def test_no_single_corrupt_byte_gets_through(tmp_path):
    """Of any byte of the file: it is refused, or changes nothing at all (padding of the header)."""
    result = make("identity", size=1)
    path = result.save(tmp_path / "set")
    content, again = path.read_bytes(), tmp_path / "again"
    refused = 0
    for changed in every_byte(content):
        path.write_bytes(changed)
        try:
            loaded = load_result(path)
        except DataError:
            refused += 1
        else:
            assert loaded.save(again).read_bytes() == content
    assert refused > 0.98 * len(content)


def fuzz(tmp_path, cases: int, *, seed: int) -> collections.Counter:
    """Damaged files, and in turn files whose card was changed and signed again."""
    result, rng, outcomes = make(), np.random.default_rng(seed), collections.Counter()
    path = result.save(tmp_path / "set")
    content, (card, arrays) = path.read_bytes(), parts(path)
    for i in range(cases):
        kind = ("damaged", "forged")[i % 2]
        if kind == "damaged":
            path.write_bytes(damaged(content, rng))
        else:
            write(path, mutated(card, rng), arrays)
        try:
            loaded = load_result(path)
        except DataError:
            outcomes[f"{kind}, refused"] += 1
            continue
        same = all(
            np.array_equal(x, y)
            for field in ("coreset", "last", "baseline")
            for x, y in zip(
                jax.tree.leaves(getattr(result, field)),
                jax.tree.leaves(getattr(loaded, field)),
                strict=True,
            )
        )
        outcomes[f"{kind}, identical" if same else f"{kind}, changed"] += 1
    return outcomes


def test_damaged_and_forged_files_are_refused_or_change_no_array(tmp_path):
    outcomes = fuzz(tmp_path, 300, seed=0)
    assert outcomes["damaged, refused"] > 140, outcomes
    assert outcomes["forged, refused"] > 50, outcomes
    assert not any("changed" in outcome for outcome in outcomes), outcomes


@pytest.mark.slow
def test_thousands_of_damaged_and_forged_files(tmp_path, capsys):
    outcomes = fuzz(tmp_path, 8000, seed=1)
    with capsys.disabled():
        print(f"\n{dict(outcomes)}")
    assert not any("changed" in outcome for outcome in outcomes), outcomes


def test_a_huge_header_is_not_read(tmp_path):
    path = make().save(tmp_path / "set")
    path.write_bytes((2**40).to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(DataError, match="header claims 1099511627776 bytes"):
        load_result(path)
