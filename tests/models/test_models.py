"""Networks: counts, shapes, both convolution formulations, and the body/head split."""

import itertools
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from rcig_eqx import convnet_for
from rcig_eqx.models import (
    ConvNet,
    _cpu_convolution,
    average_pool,
    conv2d,
    count_parameters,
    max_pool,
    partition,
    softplus,
)


def in_each_formulation(monkeypatch, function, *args):
    """What a function gives with either way to write a convolution, compiled."""
    for formulation in ("own", "lax"):
        monkeypatch.setattr("rcig_eqx.models._conv.conv_formulation", lambda f=formulation: f)
        yield jax.jit(lambda *args: function(*args))(*args)


def assert_close(results):
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.abs(b).max()))


@pytest.mark.parametrize(
    ("size", "window", "options"),
    [
        ((9, 8), 3, {"padding": 3}),
        ((9, 8), 3, {"padding": 0}),
        ((9, 8), 3, {"padding": 1, "stride": 2}),
        ((9, 8), 1, {"padding": 0, "stride": 2}),
        ((9, 8), 5, {"padding": 2, "stride": 3}),
        ((2, 4), 3, {"padding": 1}),
        ((1, 1), 3, {"padding": 1}),
        ((3, 3), 5, {"padding": 2}),
    ],
    ids=str,
)
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_cpu_convolution_equals_lax(size, window, options, channels, monkeypatch):
    """Values, both Jacobian products and the second derivative that the hypergradient takes.

    Seventeen images are more than a kernel gradient takes together, of maps of 9 × 8.
    """
    keys = jr.split(jr.key(0))
    x, dx = jr.normal(keys[0], (2, 17, *size, channels))
    w, dw = jr.normal(keys[1], (2, window, window, channels, 4))

    def everything(x, w):
        f = lambda x, w: conv2d(x, w, **options) ** 2  # noqa: E731
        y, tangent = jax.jvp(f, (x, w), (dx, dw))
        second = jax.grad(lambda x: jnp.sum(jax.jvp(lambda w: f(x, w), (w,), (dw,))[1] ** 2))(x)
        return y, tangent, jax.grad(lambda w: jnp.sum(f(x, w) ** 2))(w), second

    assert_close(in_each_formulation(monkeypatch, everything, x, w))


def test_cpu_convolution_window_by_window_crops_where_padding_is_negative():
    x, w = jr.normal(jr.key(0), (3, 4, 2, 5)), jr.normal(jr.key(1), (3, 3, 5, 4))
    padding = ((-1, 1), (1, 2))
    mine = _cpu_convolution.convolve(x, w, padding)
    theirs = jax.lax.conv_general_dilated(
        x, w, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert _cpu_convolution._few_large_windows(x, w, padding)
    np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


def test_max_pool_chooses_one_of_those_that_are_largest():
    x = jnp.array([[1.0, 2.0], [2.0, 2.0]])[None, :, :, None]
    gradient = jax.grad(lambda x: max_pool(x).sum())(x)
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[0, 1], [0, 0]])
    assert np.isnan(max_pool(x.at[0, 1, 0].set(jnp.nan))).all()
    assert np.isnan(max_pool(x.at[0, 0, 0].set(jnp.nan))).all()


def test_cpu_convolution_sums_half_precision_in_single():
    x, w = jnp.ones((4000, 1, 1, 1), jnp.bfloat16), jnp.ones((1, 1, 1, 1), jnp.bfloat16)
    gradient = jax.grad(lambda w: jnp.sum(conv2d(x, w, padding=0).astype(jnp.float32)))
    assert float(gradient(w)[0, 0, 0, 0]) == pytest.approx(4000, rel=4e-3)


def test_on_cpu_no_convolution_in_a_loop_is_one_that_xla_runs_slowly():
    """Each has the only order of dimensions for which XLA has a fast kernel there."""
    model = convnet_for((16, 16, 1), 10, width=8)(jr.key(0))
    images = jr.normal(jr.key(1), (16, 16, 16, 1))

    def train(model, images):
        gradient = jax.grad(lambda model, x: jnp.sum(model(x) ** 2), (0, 1))
        step = lambda _, both: jax.tree.map(jnp.subtract, both, gradient(*both))  # noqa: E731
        return jax.lax.fori_loop(0, 3, step, (model, images))

    program = jax.jit(train).lower(model, images).compile().as_text()
    assert program is not None
    kinds = re.findall(r"convolution\(.*dim_labels=([^,]+)", program)
    assert len(kinds) >= 3 * len(model.blocks) - 1
    assert set(kinds) == {"b01f_01io->b01f"}


def test_under_shard_map_the_kernel_gradient_is_summed_over_the_devices():
    x, w = jr.normal(jr.key(0), (4, 5, 5, 2)), jr.normal(jr.key(1), (3, 3, 2, 3))
    gradient = jax.grad(lambda w, x: jnp.sum(conv2d(x, w, padding=1) ** 2))
    mesh = jax.make_mesh((1,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    whole, over = jax.P(), jax.P("batch")
    divided = jax.shard_map(gradient, mesh=mesh, in_specs=(whole, over), out_specs=whole)
    np.testing.assert_allclose(jax.jit(divided)(w, x), gradient(w, x), rtol=1e-5)


@pytest.mark.parametrize("axes", [(1, None), (None, 0), (2, 1)], ids=str)
@pytest.mark.parametrize("divided", [False, True])
def test_cpu_convolution_over_a_batch(axes, divided, monkeypatch):
    """`vmap` over images, kernels and both, of gradients and inside them."""
    monkeypatch.setattr("rcig_eqx.models._cpu_convolution._divided", lambda: divided)
    x = jnp.moveaxis(jr.normal(jr.key(0), (3, 2, 5, 5, 2)), 0, axes[0] or 0)
    w = jnp.moveaxis(jr.normal(jr.key(1), (3, 3, 3, 2, 4)), 0, axes[1] or 0)
    x, w = x if axes[0] is not None else x[0], w if axes[1] is not None else w[0]
    loss = lambda x, w: jnp.sum(conv2d(x, w, padding=1) ** 2)  # noqa: E731

    def both_orders(x, w):
        inside = jax.vmap(jax.grad(loss, (0, 1)), axes)(x, w)
        return inside, jax.grad(lambda *a: jnp.sum(jax.vmap(loss, axes)(*a)), (0, 1))(x, w)

    assert_close(in_each_formulation(monkeypatch, both_orders, x, w))


def test_softplus_and_its_derivatives():
    x = jnp.array([-200.0, -3.0, -1e-3, 0.0, 1e-3, 3.0, 200.0])
    np.testing.assert_allclose(softplus(x), jax.nn.softplus(x), rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(softplus))(x), jax.nn.sigmoid(x), rtol=1e-6)
    second = jax.vmap(jax.grad(jax.grad(softplus)))(x)
    np.testing.assert_allclose(second, jax.nn.sigmoid(x) * jax.nn.sigmoid(-x), rtol=1e-5, atol=1e-7)


def test_pools_drop_an_odd_edge():
    x = jnp.arange(25.0).reshape(1, 5, 5, 1)
    expected = np.array([[3.0, 5.0], [13.0, 15.0]])
    np.testing.assert_array_equal(average_pool(x)[0, :, :, 0], expected)
    np.testing.assert_array_equal(max_pool(x)[0, :, :, 0], expected + 3)
    gradient = np.zeros((5, 5))
    gradient[1:4:2, 1:4:2] = 1
    summed = lambda x: max_pool(x).sum()  # noqa: E731
    np.testing.assert_array_equal(jax.grad(summed)(x)[0, :, :, 0], gradient)


@pytest.mark.parametrize(
    ("shape", "classes", "width", "depth", "features"),
    [
        ((28, 28, 1), 10, 32, 3, 4 * 4 * 128),  # padded by 3: 28 becomes 32
        ((32, 32, 3), 100, 128, 3, 4 * 4 * 512),
        ((64, 64, 3), 200, 16, 4, 4 * 4 * 128),
        ((12, 20, 2), 3, 5, 2, 3 * 5 * 10),
    ],
)
def test_counts_and_shapes(shape, classes, width, depth, features):
    model = convnet_for(shape, classes, width=width, depth=depth)(jr.key(0))
    channels = [shape[2], *(width * 2**i for i in range(depth))]
    convolutions = sum(9 * i * o + o for i, o in itertools.pairwise(channels))
    assert count_parameters(model) == convolutions + features * classes + classes
    images = jnp.zeros((2, *shape))
    assert eqx.filter_eval_shape(model, images).shape == (2, classes)
    assert eqx.filter_eval_shape(model.features, images).shape == (2, features)


def test_matches_a_network_written_out(monkeypatch):
    monkeypatch.setattr("rcig_eqx.models._conv.conv_formulation", lambda: "lax")
    model = ConvNet(
        in_channels=1, image_size=28, num_classes=4, width=3, depth=2, softplus=60.0, key=jr.key(0)
    )
    images = jr.normal(jr.key(1), (2, 28, 28, 1))
    x = np.asarray(images)
    for block, padding in zip(model.blocks, (3, 1), strict=True):
        x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
        x = np.einsum("nijckl,klco->nijo", windows, block.kernel) + np.asarray(block.bias)
        x = np.log1p(np.exp(-np.abs(60 * x))) / 60 + np.maximum(x, 0)
        x = (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
    expected = x.reshape(2, -1) @ np.asarray(model.head.kernel) + np.asarray(model.head.bias)
    np.testing.assert_allclose(model(images), expected, rtol=1e-4, atol=1e-5)


def test_partition_is_kernel_against_the_rest():
    model = convnet_for((8, 8, 1), 3, width=2, depth=2)(jr.key(0))
    body, head = partition(model)
    assert [leaf.shape for leaf in jax.tree.leaves(head)] == [model.head.kernel.shape]
    assert body.head.kernel is None
    assert body.head.bias is not None
    assert eqx.tree_equal(eqx.combine(body, head), model)


def test_lecun_normal_kernels_and_zero_biases():
    model = convnet_for((32, 32, 3), 10, width=64)(jr.key(0))
    for kernel, fan_in in [(b.kernel, 9 * b.kernel.shape[2]) for b in model.blocks] + [
        (model.head.kernel, model.head.kernel.shape[0])
    ]:
        np.testing.assert_allclose(float(kernel.std()), fan_in**-0.5, rtol=0.05)
        assert abs(float(kernel.mean())) < 0.1 * fan_in**-0.5
    assert all(block.bias is not None and not block.bias.any() for block in model.blocks)
    assert not model.head.bias.any()


def test_parameters_stay_float32_with_x64_on():
    with jax.enable_x64(True):
        model = convnet_for((8, 8, 1), 3, width=2, depth=1)(jr.key(0))
        assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {np.dtype("float32")}


def test_paper_depths_and_activations():
    for size, depth, softplus_at in ((28, 3, 60.0), (32, 3, 60.0), (64, 4, None), (128, 5, None)):
        model = convnet_for((size, size, 3), 2, width=1)(jr.key(0))
        assert len(model.blocks) == depth
        assert {block.softplus for block in model.blocks} == {softplus_at}
