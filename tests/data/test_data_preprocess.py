import inspect
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from official_files import REAL
from rcig_eqx.data import (
    ZCA,
    AbstractPreprocess,
    DataError,
    Dataset,
    Identity,
    Standardize,
    apply_in_chunks,
    default_preprocess,
    from_state,
    load,
    standardize,
    to_state,
    write_records,
    zca,
)
from rcig_eqx.data._fit import moments


def correlated(n=600, shape=(6, 4, 3), seed=0):
    """Images whose pixels hang together, as those of photographs do."""
    rng = np.random.default_rng(seed)
    d = int(np.prod(shape))
    mixing = rng.normal(size=(d, d)) * np.linspace(1, 0.02, d)
    x = rng.normal(size=(n, d)) @ mixing
    return np.clip(128 + 8 * x, 0, 255).astype(np.uint8).reshape(n, *shape)


IMAGES = correlated()
FITS = {
    "identity": lambda images: Identity(),
    "standardize": standardize,
    "zca": zca,
    "zca_light": lambda images: zca(images, 0.01),
    "zca_blocks": lambda images: zca(images, block=2),
}


@pytest.fixture(params=list(FITS))
def preprocess(request):
    return FITS[request.param](IMAGES)


def test_inverse(preprocess):
    x = preprocess(IMAGES)
    assert (x.shape, x.dtype) == (IMAGES.shape, jnp.float32)
    back = preprocess.inverse(x)
    assert back.dtype == jnp.float32
    np.testing.assert_allclose(back, IMAGES / 255, atol=1e-4)


def test_inverse_of_what_was_never_an_image(preprocess):
    x = 3 * np.random.default_rng(1).normal(size=(7, 6, 4, 3)).astype(np.float32)
    np.testing.assert_allclose(preprocess(preprocess.inverse(x)), x, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_floats_are_taken_in_units_of_one(preprocess, dtype):
    unit = (IMAGES / 255).astype(dtype)
    tolerance = {np.float16: 2e-2, np.float32: 1e-4}[dtype]
    x = preprocess(unit)
    assert x.dtype == jnp.float32
    np.testing.assert_allclose(x, preprocess(IMAGES), atol=tolerance)


def test_jit_and_strict_settings(preprocess):
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        x = eqx.filter_jit(lambda p, i: p(i))(preprocess, jnp.asarray(IMAGES[:9]))
        back = eqx.filter_jit(lambda p, i: p.inverse(i))(preprocess, x)
    np.testing.assert_allclose(x, preprocess(IMAGES[:9]), atol=1e-5)
    np.testing.assert_allclose(back, IMAGES[:9] / 255, atol=1e-4)


def test_x64_changes_nothing(preprocess):
    with jax.enable_x64(True):
        x = preprocess(IMAGES[:9])
        assert (x.dtype, preprocess.inverse(x).dtype) == (jnp.float32, jnp.float32)


def test_in_chunks(preprocess):
    out = apply_in_chunks(preprocess, IMAGES, chunk=256)
    assert (type(out), out.dtype) == (np.ndarray, np.float32)
    np.testing.assert_allclose(out, preprocess(IMAGES), atol=1e-5)


def test_state_goes_through_json(preprocess):
    config, arrays = to_state(preprocess)
    assert all(type(a) is np.ndarray for a in arrays.values())
    back = from_state(json.loads(json.dumps(config)), arrays)
    assert eqx.tree_equal(back, preprocess)


def test_standardized_channels():
    x = np.asarray(standardize(IMAGES)(IMAGES), np.float64)
    np.testing.assert_allclose(x.mean(axis=(0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(x.std(axis=(0, 1, 2)), 1, atol=1e-5)


def test_statistics_over_several_chunks():
    images = correlated(5000, (2, 2, 3))
    unit = images.astype(np.float64) / 255
    fitted = standardize(images)
    np.testing.assert_allclose(fitted.mean, unit.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(fitted.std, unit.std(axis=(0, 1, 2)), rtol=1e-6)


def dense_zca(images, regularization):
    """The definition, in float64 and all at once."""
    x = images / 255
    x = ((x - x.mean(axis=(0, 1, 2))) / x.std(axis=(0, 1, 2))).reshape(len(x), -1)
    x = x - x.mean(axis=0)
    covariance = x.T @ x / len(x)
    s, u = np.linalg.eigh(covariance + regularization * np.trace(covariance) / len(covariance)
                          * np.eye(len(covariance)))  # fmt: skip
    return (x @ (u / np.sqrt(s)) @ u.T).reshape(images.shape), covariance


@pytest.mark.parametrize("regularization", [0.01, 0.1, 1.0])
def test_zca_is_its_definition(regularization):
    expected, _ = dense_zca(IMAGES, regularization)
    np.testing.assert_allclose(zca(IMAGES, regularization)(IMAGES), expected, atol=2e-4)


def test_whitened_covariance_is_the_regularized_identity():
    x = np.asarray(zca(IMAGES, 0.1)(IMAGES), np.float64).reshape(len(IMAGES), -1)
    _, covariance = dense_zca(IMAGES, 0.1)
    s, u = np.linalg.eigh(covariance)
    expected = (u * (s / (s + 0.1 * s.mean()))) @ u.T
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(x.T @ x / len(x), expected, atol=1e-4)


def test_light_regularization_whitens_fully():
    images = np.random.default_rng(0).random((4000, 2, 2, 3))
    x = np.asarray(zca(images, 1e-6)(images), np.float64).reshape(len(images), -1)
    np.testing.assert_allclose(x.T @ x / len(x), np.eye(12), atol=1e-3)


def test_only_the_training_images_count():
    fitted, other = zca(IMAGES), correlated(50, seed=1)
    alone = [np.asarray(fitted(other[i : i + 1])) for i in range(3)]
    np.testing.assert_allclose(np.concatenate(alone), fitted(other)[:3], atol=1e-5)
    assert not eqx.tree_equal(zca(other), fitted)


@pytest.mark.parametrize("fit", [standardize, zca])
@pytest.mark.parametrize("value", [0, 77])
def test_constant_channels_do_not_divide_by_zero(fit, value):
    for images in (IMAGES.copy(), np.full_like(IMAGES, value)):
        images[..., 1] = value
        preprocess = fit(images)
        x = preprocess(images)
        assert np.isfinite(x).all()
        np.testing.assert_allclose(x[..., 1], 0, atol=1e-3)
        np.testing.assert_allclose(preprocess.inverse(x), images / 255, atol=1e-4)


def test_default_depends_on_the_channels():
    assert isinstance(default_preprocess(IMAGES[..., :1]), Standardize)
    chosen = default_preprocess(IMAGES)
    assert isinstance(chosen, ZCA)
    assert chosen.regularization == 0.1


@pytest.mark.parametrize(("largest", "shape", "block"), [
    (64, (6, 4), None),
    (4, (4, 4), None),
    (4, (8, 8), 4),
    (4, (12, 6), 3),
    (4, (7, 5), 1),
])  # fmt: skip
def test_default_of_large_images_is_in_tiles(monkeypatch, largest, shape, block):
    monkeypatch.setattr("rcig_eqx.data._preprocess._LARGEST_BLOCK", largest)
    chosen = default_preprocess(correlated(60, (*shape, 3)))
    assert isinstance(chosen, ZCA)
    assert chosen.block == block


def tiles_of(images, block):
    """Every tile, flattened, by slices."""
    _, h, w, _ = images.shape
    return np.stack([
        images[i, y : y + block, x : x + block].reshape(-1)
        for i in range(len(images))
        for y in range(0, h, block)
        for x in range(0, w, block)
    ])  # fmt: skip


@pytest.mark.parametrize("block", [1, 2])
def test_blocks_are_whitened_by_the_covariance_of_all_tiles(block):
    unit = IMAGES / 255
    scaled = (unit - unit.mean(axis=(0, 1, 2))) / unit.std(axis=(0, 1, 2))
    tiles = tiles_of(scaled, block)
    center = tiles.mean(axis=0)
    covariance = (tiles - center).T @ (tiles - center) / len(tiles)
    s, u = np.linalg.eigh(covariance)
    expected = (tiles - center) @ (u / np.sqrt(s + 0.1 * s.mean())) @ u.T
    x = np.asarray(zca(IMAGES, 0.1, block)(IMAGES), np.float64)
    assert x.shape == IMAGES.shape
    whitened = tiles_of(x, block)
    np.testing.assert_allclose(whitened, expected, atol=2e-4)
    np.testing.assert_allclose(
        whitened.T @ whitened / len(whitened), (u * (s / (s + 0.1 * s.mean()))) @ u.T, atol=1e-4
    )


def test_a_block_of_the_whole_image_is_no_block():
    square = IMAGES[:, :4]
    whole, block = zca(square), zca(square, block=4)
    np.testing.assert_array_equal(whole.eigenvalues, block.eigenvalues)
    np.testing.assert_allclose(whole(square), block(square), atol=1e-6)


@pytest.mark.parametrize("fit", [zca, lambda images: zca(images, block=2)])
def test_range(fit):
    """Whitened pixels have at most unit variance, and go back to pixels in [0, 1]."""
    preprocess = fit(IMAGES)
    x = np.asarray(preprocess(IMAGES), np.float64)
    tiles = x.reshape(len(x), -1) if preprocess.block is None else tiles_of(x, preprocess.block)
    assert tiles.var(axis=0).max() <= 1 + 1e-4
    assert tiles.var(axis=0).max() > 0.5
    back = np.asarray(preprocess.inverse(x))
    assert (back.min() > -1e-4) & (back.max() < 1 + 1e-4)


@pytest.mark.parametrize("block", [-1, 0, 3, 8, 2.0])
def test_blocks_that_do_not_fill_the_image(block):
    with pytest.raises(ValueError, match=r"does not divide images of 6x4 pixels: choose of 1, 2\."):
        inspect.unwrap(zca)(IMAGES, 0.1, block)


@pytest.mark.parametrize("fit", [standardize, zca, lambda images: zca(images, block=2)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_the_same_set_in_memory_and_on_disk_has_the_same_statistics(fit, dtype, tmp_path):
    images = (IMAGES if dtype == np.uint8 else IMAGES / 255).astype(dtype)
    data = Dataset.from_arrays(images, np.arange(len(images)) % 3)
    records = write_records(data, tmp_path / "r", progress=False)
    for images_of in (data, records):
        assert eqx.tree_equal(fit(images_of), fit(images))


def test_sums_of_bytes_are_exact_in_any_order():
    """Black images have the largest numbers, 128 below the middle; 5,000 are several chunks."""
    black = np.zeros((5000, 2, 2, 3), np.uint8)
    black[::2] = 1
    shuffled = np.random.default_rng(0).permutation(black)
    found, again = moments(black, None, full=True), moments(shuffled, None, full=True)
    assert found.second is not None
    np.testing.assert_array_equal(found.second, again.second)
    expected = (128**2 + 127**2) / 2 / 255**2
    for full in (False, True):
        square = moments(black, None, full=full).square
        np.testing.assert_allclose(square, expected, rtol=1e-15)
    np.testing.assert_allclose(found.second, expected, rtol=1e-15)
    np.testing.assert_allclose(found.mean + found.shift, 0.5 / 255, rtol=1e-12)


@pytest.mark.slow
def test_invertible_at_the_size_of_photographs():
    images = np.clip(correlated(400, (8, 8, 3)).repeat(8, 1).repeat(8, 2), 0, 255)
    rng = np.random.default_rng(0)
    images = np.clip(images + rng.normal(0, 9, images.shape), 0, 255).astype(np.uint8)
    preprocess = zca(images, block=32)
    x = preprocess(images)
    np.testing.assert_allclose(preprocess.inverse(x), images / 255, atol=1e-4)


def test_memory_mapped_images(tmp_path):
    np.save(tmp_path / "x.npy", IMAGES)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert eqx.tree_equal(zca(mapped), zca(IMAGES))


@pytest.mark.parametrize("call", [Identity(), standardize, zca])
def test_integer_images_are_refused(call):
    with pytest.raises(ValueError, match="int32: pass uint8"):
        call(IMAGES.astype(np.int32))


def test_regularization_must_be_positive():
    with pytest.raises(ValueError, match="make it positive"):
        zca(IMAGES, 0.0)


class Negative(AbstractPreprocess):
    def __call__(self, images):
        return 1 - jnp.asarray(images)

    def inverse(self, x):
        return 1 - jnp.asarray(x)


class Mixed(Negative):
    mix: Array


def test_an_own_class_is_stored_by_its_arrays():
    config, arrays = to_state(Mixed(jnp.array([1.0, 2.0, 3.0])))
    assert config["class"].endswith("Mixed")
    restored = from_state(json.loads(json.dumps(config)), arrays, Mixed(jnp.zeros(3)))
    assert eqx.tree_equal(restored, Mixed(jnp.array([1.0, 2.0, 3.0])))
    assert eqx.tree_equal(from_state(*to_state(Negative()), Negative()), Negative())


def test_state_errors():
    with pytest.raises(ValueError, match="Mixed cannot be stored: make its arrays finite float32"):
        to_state(Mixed(jnp.arange(3)))
    config, arrays = to_state(Mixed(jnp.ones(3)))
    with pytest.raises(DataError, match=r"Mixed, which is no part of the library"):
        from_state(config, arrays)
    with pytest.raises(DataError, match=r"Mixed, which is no part of the library"):
        from_state(config, arrays, Negative())
    with pytest.raises(DataError, match="other arrays than the one given"):
        from_state(config, arrays, Mixed(jnp.ones(2)))
    with pytest.raises(ValueError, match=r"kind 'whiten' is unknown.*'zca'"):
        from_state({"kind": "whiten"}, {})
    with pytest.raises(ValueError, match="kind None is unknown"):
        from_state({}, {})
    with pytest.raises(ValueError, match="'standardize' lacks 'mean'"):
        from_state({"kind": "standardize"}, {})
    _, arrays = to_state(zca(IMAGES))
    with pytest.raises(ValueError, match="'zca' lacks 'regularization'"):
        from_state({"kind": "zca"}, arrays)


def test_real_photographs():
    if not (REAL / "cifar10").is_dir():
        pytest.skip(f"no real data in {REAL}")
    images = load("cifar10", directory=REAL, download=False).images[:2000, 8:24, 8:24]
    preprocess = zca(images)
    x = preprocess(images)
    np.testing.assert_allclose(preprocess.inverse(x), images / 255, atol=1e-4)
    assert abs(float(x.mean())) < 1e-3
