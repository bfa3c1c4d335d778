"""What a notebook and a prompt show of results."""

import io
import sys
import warnings

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import PIL.Image
import pytest

from rcig_eqx import Coreset, _console, convnet_for, distill, evaluate, export, load_export
from rcig_eqx.io import plot_grid


@pytest.fixture(scope="module")
def result():
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, (20, 8, 8, 1), np.uint8), np.arange(20) % 2
    model = convnet_for((8, 8, 1), 2, width=2, depth=1)
    return distill(
        data, images_per_class=1, key=jr.key(0), model=model, steps=1, progress=False
    ), data


def test_everything_has_a_short_repr(result, tmp_path):
    result, data = result
    report = evaluate(result, data, key=jr.key(1), num_networks=2, steps=2, progress=False)
    read = load_export(export(result, tmp_path / "export", evaluation=report))
    assert repr(result.coreset) == "Coreset(2x8x8x1, 2 classes, Standardize)"
    assert repr(report).startswith("Evaluation(")
    assert "over 2 networks, random real" in repr(report)
    assert repr(read).startswith("Export(Coreset(")
    for value in (result, result.coreset, report, read):
        assert len(repr(value)) < 200
        assert "\n" not in repr(value)
    assert "<td>random real</td>" in report._repr_html_()
    for value in (result, result.coreset, read):
        picture = value._repr_png_()
        assert picture
        assert PIL.Image.open(io.BytesIO(picture)).format == "PNG"


def test_a_figure_is_what_is_saved(result):
    result, _ = result
    figure = result.plot(title="two")
    assert figure.axes
    assert [text.get_text() for text in figure.axes[0].texts] == ["0", "1"]
    with pytest.raises(ValueError, match="pass one name"):
        plot_grid(result.coreset, ("a",))


def test_what_is_no_image_shows_no_picture():
    from rcig_eqx.io._plot import grid_png

    rows = Coreset(jnp.zeros((2, 5)), jnp.eye(2), jnp.zeros(()))
    assert grid_png(rows, ("a", "b")) is None
    assert rows._repr_png_() is None
    assert repr(rows) == "Coreset(2x5, 2 classes, no preprocessing)"


def test_a_notebook_without_widgets_is_told_nothing(monkeypatch, capsys):
    """rich warns where it takes a process for a notebook's and finds no ipywidgets."""
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    monkeypatch.setattr(_console.importlib.util, "find_spec", lambda name: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(_console.track(range(3), "counting", shown=True)) == [0, 1, 2]
    assert list(_console.track([1], "counting", shown=False)) == [1]
