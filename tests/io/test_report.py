"""The page of a run, opened in a browser; figures; tensors."""

import dataclasses
import io
import shutil
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import PIL.Image
import pytest

from rcig_eqx import Coreset, DistillResult, save_report
from rcig_eqx.data import standardize
from rcig_eqx.evaluation import Evaluation
from rcig_eqx.io._figures import confusion_figure, history_figure
from rcig_eqx.io._report import duration, said

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

HOSTILE = (
    "<script>document.title='taken'</script>",
    "$\\frac{1}{2}$ </text></svg><script>console.error(2)</script>",
    "'\"><img src=x onerror=console.error(3)>",
    "{{ 7*7 }}",
    "猫 & \u202eevil\x00",
    "a" * 200,
)


def make(
    classes: int = 4, each: int = 1, shape: tuple[int, ...] = (8, 8, 3), names: Any = None
) -> DistillResult:
    """A result of `classes`, its numbers drawn."""
    rng, n = np.random.default_rng(0), classes * each
    raw = rng.random((20, *shape)).astype(np.float32)
    images = jr.normal(jr.key(0), (n, *shape))
    labels = jnp.asarray(np.repeat(np.eye(classes, dtype=np.float32), each, axis=0))
    coreset = Coreset(images, labels, jnp.zeros(()), standardize(raw))
    recipe = {
        "dataset": "photos <i>", "steps": 300, "steps_done": 300, "bits_per_class": 12_345,
        "command": "rcig-eqx distill 'my photos' -n 1", "versions": {"jax": "0.0.7"},
        "method": {"name": "Frepo", "l2_rate": 1e-3},
    }  # fmt: skip
    history = {"loss": np.linspace(1, 0, 300), "accuracy": np.linspace(0, 0.9, 300)}
    history |= {"seconds": np.linspace(1, 200, 300), "rejected": np.zeros(300)}
    floats = {name: values.astype(np.float32) for name, values in history.items()}
    names = names or tuple(f"class {i}" for i in range(classes))
    return DistillResult(coreset, coreset, coreset, names, recipe, floats)


def measured(result: DistillResult) -> Evaluation:
    """An evaluation of it by two networks."""
    rng, classes = np.random.default_rng(1), len(result.class_names)
    counts = rng.integers(0, 3, (classes, classes)) + 40 * np.eye(classes, dtype=np.int64)
    right = np.diag(counts) / counts.sum(1)
    parts = np.stack([right, right]), result.class_names, 30
    own = Evaluation(np.array([0.625, 0.75]), *parts, confusion=counts)
    beside = dataclasses.replace(own, accuracies=np.array([0.25, 0.375]), confusion=None)
    return dataclasses.replace(own, baseline=beside, tested_on={"images": 4321})


CASES: dict[str, Any] = {
    "images": make(),
    "hostile names": make(6, names=HOSTILE),
    "ten of each": make(3, 12, (28, 28, 1)),
    "100 classes": make(100, 2),
    "1,000 classes": make(1000, 1, (8, 8, 1)),
    "rows": make(3, 4, (13,)),
    "five channels": make(2, 1, (8, 8, 5)),
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("pages")
    return {
        name: save_report(folder / name / "page.html", result, measured(result), full=0.875)
        for name, result in CASES.items()
    }


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no chromium on this machine")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


LOOK = """() => ({
    wide: document.documentElement.scrollWidth,
    title: document.title,
    text: document.body.innerText,
    empty: [...document.images].filter(image => !image.naturalWidth).length,
    images: document.images.length,
    drawn: [...document.querySelectorAll("svg")].map(svg => svg.getBoundingClientRect().width),
    scripts: document.scripts.length,
    small: [...document.querySelectorAll("p, td, th, dt, figcaption")].filter(
        part => part.offsetParent && parseFloat(getComputedStyle(part).fontSize) < 12).length,
})"""


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", CASES)
def test_a_browser_shows_it_all(name, width, pages, browser):
    """No error, no request, no script, every picture there, and no scrolling sideways."""
    result, said = CASES[name], []
    page = browser.new_page(viewport={"width": width, "height": 844})
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url))
    page.goto(pages[name].as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    seen = page.evaluate(LOOK)
    page.close()
    requests = [text for text in said if not text.startswith("data:")]
    assert requests == [pages[name].as_uri()]
    assert seen["wide"] == width
    assert seen["scripts"] == seen["empty"] == seen["small"] == 0
    is_images = result.coreset.images.ndim == 4
    each = min(10, len(result.coreset.images) // len(result.class_names))
    assert seen["images"] == is_images * each * len(result.class_names)
    assert len(seen["drawn"]) == 3 + (not is_images)  # two curves, the matrix; rows
    assert min(seen["drawn"]) > 200
    assert seen["title"].startswith("photos <i>, ")
    for part in ("68.8%", "31.2%", "87.5%", "12,345", "4,321 test", "rcig-eqx distill", "0.0.7"):
        assert part in seen["text"]
    if name != "hostile names":
        for class_name in result.class_names:
            assert class_name in seen["text"]


def test_a_browser_shows_hostile_names_as_they_are(pages, browser):
    page = browser.new_page()
    page.goto(pages["hostile names"].as_uri())
    text = page.evaluate("document.body.innerText")
    in_figure = page.evaluate("[...document.querySelectorAll('svg text')].map(x => x.textContent)")
    page.close()
    for name in HOSTILE[:4]:
        assert name in text
    assert "猫 & \ufffdevil\ufffd" in text
    assert "{{ 7*7 }}" in in_figure


class Tags(HTMLParser):
    """The addresses and the tags of a page."""

    def __init__(self):
        super().__init__()
        self.tags, self.addresses = set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        links = ("src", "href", "xlink:href", "srcset", "action", "data")
        self.addresses += [value or "" for name, value in attrs if name in links]


@pytest.mark.parametrize("name", CASES)
def test_the_file_holds_everything(name, pages):
    text, parser = pages[name].read_text(encoding="utf-8"), Tags()
    parser.feed(text)
    assert not parser.tags & {"script", "iframe", "object", "embed", "form", "base"}
    assert all(address.startswith(("data:", "#")) for address in parser.addresses)
    assert "@import" not in text
    assert len(text) < 4e6


def test_what_was_not_measured_is_said(tmp_path):
    result = dataclasses.replace(make(), history={})
    path = save_report(tmp_path, result)
    assert path == tmp_path / "report.html"
    text = path.read_text()
    assert text.count("not measured") >= 3
    assert "rcig-eqx evaluate distilled.safetensors --full" in text
    assert "Learning curve" not in text
    assert "Confusion" not in text
    in_python = {k: v for k, v in result.recipe.items() if k != "command"}
    text = save_report(tmp_path, dataclasses.replace(result, recipe=in_python)).read_text()
    assert "evaluate_full(" in text
    stopped = dataclasses.replace(result, recipe=result.recipe | {"steps_done": 7})
    assert "stopped after step 7 of 300" in save_report(tmp_path, stopped).read_text()


def test_remarks_are_on_the_page(tmp_path):
    result = make()
    behind = dataclasses.replace(measured(result), accuracies=np.array([0.125, 0.125]))
    text = save_report(tmp_path, result, behind).read_text()
    assert "does worse than random images" in text


def test_the_same_page_comes_of_the_same_result(tmp_path):
    result = make()
    pages = [save_report(tmp_path / name, result, measured(result)) for name in ("a", "b")]
    assert pages[0].read_bytes() == pages[1].read_bytes()


def test_another_evaluation_is_refused(tmp_path):
    other = measured(make(3))
    for arguments in ({"evaluation": other}, {"full": other}):
        with pytest.raises(ValueError, match="other classes"):
            save_report(tmp_path, make(), **arguments)
    assert not list(tmp_path.iterdir())


def test_what_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"rcig-eqx\[report\]"):
        save_report(tmp_path, make())


def test_settings_are_in_words():
    assert said({"name": "Frepo", "rate": 0.5, "of": {"a": None}}) == "Frepo (rate 0.5, of a none)"
    assert said([1234, True, "a\n b"]) == "1,234, yes, a b"
    spans = {
        0.25: "0.2 s",
        42.4: "42 s",
        59.7: "1 min 0 s",
        200.0: "3 min 20 s",
        7500.0: "2 h 5 min",
    }
    assert {seconds: duration(seconds) for seconds in spans} == spans


# Figures


def texts(figure) -> list[str]:
    return [text.get_text() for axis in figure.axes for text in axis.texts]


def test_a_history_is_a_figure_of_its_curves():
    result = make()
    figure = result.plot_history()
    assert [axis.get_title(loc="left") for axis in figure.axes] == [
        "outer loss", "accuracy on the outer batch"
    ]  # fmt: skip
    x, y = figure.axes[0].lines[0].get_data()
    assert x[-1] == 300
    window = result.history["loss"][-6:]  # 2% of the steps
    assert y[-1] == pytest.approx(window.mean(), rel=1e-5)
    assert len(result.plot_history(["seconds"]).axes) == 1
    with pytest.raises(ValueError, match="none of these curves"):
        result.plot_history(["none"])


def test_numbers_that_are_not_finite_leave_a_gap_in_no_mean():
    loss = np.array([1.0, np.nan, 3.0, np.inf], np.float32)
    figure = history_figure({"loss": loss, "rejected": np.array([0.0, 1.0, 0.0, 1.0])})
    line, rejected = figure.axes[0].lines
    assert rejected.get_xdata().tolist() == [2, 4]
    assert np.isfinite(line.get_ydata()).all()


def test_a_confusion_matrix_is_of_shares_of_each_class():
    counts = np.array([[3, 1, 0], [0, 4, 0], [5, 0, 5]])
    figure = confusion_figure(counts, ("a", "b$", "c"), title="t")
    assert texts(figure) == ["75", "25", "100", "50", "50"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b$", "c"]
    (mesh,) = figure.axes[0].collections
    share = counts / counts.sum(1, keepdims=True)
    np.testing.assert_allclose(np.asarray(mesh.get_array()).reshape(3, 3), share)


@pytest.mark.parametrize("classes", [2, 30, 100, 400])
def test_confusion_matrices_of_any_size_are_drawn(classes):
    result = make(classes)
    figure = measured(result).plot_confusion()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=50)
    assert PIL.Image.open(picture).size[0] < 1000
    named = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert (f"class {classes - 1}" in named) == (classes <= 150)


def test_an_evaluation_without_counts_has_no_matrix():
    with pytest.raises(ValueError, match="no confusion matrix"):
        dataclasses.replace(measured(make()), confusion=None).plot_confusion()


# Tensors


def test_a_set_is_tensors_of_pytorch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    for result in (make(), make(3, 2, (5,))):
        images, labels = result.to_torch()
        assert images.dtype == labels.dtype == torch.float32
        assert images.is_contiguous()
        there = np.asarray(result.coreset.images)
        there = there.transpose(0, 3, 1, 2) if there.ndim == 4 else there
        np.testing.assert_array_equal(images.numpy(), there)
        np.testing.assert_array_equal(labels.numpy(), np.asarray(result.coreset.labels))
        images += 1  # their own memory
        assert not np.array_equal(images.numpy(), there)


def test_without_pytorch_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"rcig-eqx\[torch\]"):
        make().to_torch()
