"""What the defaults reach on all of Fashion-MNIST at width 32. Long: marked slow."""

import jax.random as jr
import pytest

from rcig_eqx import convnet_for, data, distill, evaluate


@pytest.fixture(scope="module")
def fashion_mnist():
    try:
        return tuple(data.load("fashion_mnist", s, download=False) for s in ("train", "test"))
    except (ValueError, OSError) as error:
        pytest.skip(f"needs Fashion-MNIST on this machine: {error}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("images_per_class", "least"), [(1, {50: 0.69, 100: 0.715, 200: 0.725}), (10, {50: 0.76})]
)
def test_defaults_reach(fashion_mnist, images_per_class, least):
    """The mean of five fresh networks, on all 10,000 test images."""
    train, test = fashion_mnist
    reached = {}

    def keep(progress):
        if progress.step in least:
            reached[progress.step] = progress.result()

    distill(
        train,
        images_per_class=images_per_class,
        key=jr.key(0),
        model=convnet_for(train.image_shape, 10, width=32),
        steps=max(least),
        callbacks=[keep],
    )
    model = convnet_for(train.image_shape, 10, width=32, softplus=None)
    for step, accuracy in least.items():
        report = evaluate(reached[step].coreset, test, key=jr.key(1), model=model)
        assert report.mean >= accuracy, f"after {step} steps: {report}"
