"""The documentation: nothing public is missing from it, and its code does what it says."""

import argparse
import contextlib
import importlib.metadata
import inspect
import io
import itertools
import re
import runpy
import shlex
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

import rcig_eqx

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
}

# The default run replaces these words of pages that take minutes. `pytest -m slow` runs their text.
_BRIEF = {
    "width=32": "width=2, depth=1",
    "steps=100": "steps=4",
    "test, key=jr.key(1)": "test, key=jr.key(1), num_networks=1, steps=4",
}
_FEW_STEPS = {"width=32": "width=2, depth=1", '"steps": 100': '"steps": 2'}
# A minute or two each: with the slow tests.
LONG: set[str] = set()
SHORTENED = {
    "README.md": _BRIEF,
    "docs/index.md": _BRIEF,
    "docs/storage.md": _FEW_STEPS,
    "docs/devices.md": _FEW_STEPS,
}


# Every public name


def public(module: types.ModuleType) -> dict[str, Any]:
    """What a module and those it offers have, by the name to import it by."""
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
    ]
    found = {f"{module.__name__}.{name}": getattr(module, name) for name in names}
    found.pop(f"{module.__name__}.jaxtyping", None)  # the test hook's
    for value in list(found.values()):
        if isinstance(value, types.ModuleType):
            found |= public(value)
    return found


PUBLIC = public(rcig_eqx)
REFERENCE = [
    name
    for page, text in PAGES.items()
    if page.startswith("docs/api/")
    for name in re.findall(r"^::: (\S+)", text, re.MULTILINE)
]


def test_the_reference_has_every_public_name_once():
    assert not set(REFERENCE) - set(PUBLIC), "docs/api has names that are not there"
    there = {id(PUBLIC[name]) for name in REFERENCE}
    assert len(there) == len(REFERENCE), "docs/api has something twice"
    missing = [f"::: {name}" for name, value in PUBLIC.items() if id(value) not in there]
    modules = [f"::: {m.__name__}" for m in PUBLIC.values() if isinstance(m, types.ModuleType)]
    assert not set(missing) - set(modules), "add these lines to a page of docs/api"


def parts(name: str) -> Iterator[tuple[str, Any, str]]:
    """A public object and, of a class, what it defines itself: name, object, docstring."""
    value = PUBLIC[name]
    yield name, value, docstring(value)
    if not inspect.isclass(value):
        return
    for attribute, part in vars(value).items():
        part = getattr(part, "__func__", part)
        if attribute.startswith("_") and attribute not in ("__call__", "__init__"):
            continue
        if inspect.isfunction(part) or isinstance(part, property):
            declared = [vars(base)[attribute] for base in value.__mro__ if attribute in vars(base)]
            said = value.__doc__ if attribute == "__init__" else part.__doc__
            yield f"{name}.{attribute}", part, said or docstring(declared[-1])


def docstring(value: Any) -> str:
    """What somebody wrote: not what a dataclass writes of itself."""
    said = value.__doc__ or ""
    return "" if said.startswith(f"{getattr(value, '__name__', None)}(") else said


ALIASES = {name for name, value in PUBLIC.items() if typing.get_origin(value) is not None}


def test_type_aliases_have_docstrings():
    sources = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    for name in ALIASES:
        alias = rf'^{name.rpartition(".")[2]} = [^\n]+\n"""\S'
        assert re.search(alias, sources, re.MULTILINE), f"no string follows {name}"


@pytest.mark.parametrize("name", sorted(PUBLIC.keys() - ALIASES))
def test_it_is_documented_with_shapes(name):
    """A docstring, and of every array the shape: in the annotation or in the docstring."""
    for part, value, said in parts(name):
        assert said.strip(), f"{part} has no docstring"
        for argument, annotation in annotations(value).items():
            shaped = re.search(rf"`{argument}`:? `?\[[a-z ]+\]", said)
            assert shaped or not has_bare_array(annotation), f"{part}: {argument} has no shape"


def annotations(value: Any) -> dict[str, Any]:
    if inspect.isclass(value):
        return vars(value).get("__annotations__", {})
    if not inspect.isfunction(value):
        return {}
    signature = inspect.signature(value)
    given = {p.name: p.annotation for p in signature.parameters.values()}
    return given | {"return": signature.return_annotation}


def has_bare_array(annotation: Any) -> bool:
    """Whether it has an array without a shape: not in functions, nor in arrays by name."""
    if annotation in (jax.Array, np.ndarray):
        return True
    if typing.get_origin(annotation) in (dict, Mapping, Callable):
        return False
    return any(has_bare_array(inner) for inner in typing.get_args(annotation))


# Every block of code


class Block(NamedTuple):
    """A block of Python with the output that the next block says it prints."""

    line: int
    code: str
    output: str | None


FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"<!-- not run: .+ -->\s*$")
NUMBER = re.compile(r"[-−+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def blocks(text: str) -> Iterator[Block]:
    """The blocks that run. `<!-- not run: why -->` before one says that it does not.

    A block of `text` right after one is its output.
    """
    for fence, following in itertools.pairwise([*FENCE.finditer(text), None]):
        assert fence
        indent, language, code = fence.groups()
        if language != "python" or NOT_RUN.search(text[: fence.start()]):
            continue
        output = None
        if (
            following
            and following[2] == "text"
            and not text[fence.end() : following.start()].strip()
        ):
            output = following[3]
        dedented = re.sub(rf"^{indent}", "", code, flags=re.MULTILINE)
        yield Block(text.count("\n", 0, fence.start()) + 1, dedented, output)


def run(page: str, text: str) -> None:
    """Run a page's blocks in one namespace, and compare what they print."""
    namespace = {"__name__": "__main__"}
    for block in blocks(text):
        source = "\n" * block.line + block.code  # so that a traceback names the page's lines
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(source, page, "exec"), namespace)
        if block.output is not None:
            compare(printed.getvalue(), block.output, f"{page}, line {block.line}")


def compare(printed: str, expected: str, where: str) -> None:
    """Word by word the same; numbers as near as their last digit, `≈` before one within a tenth."""
    words, wanted = printed.split(), expected.split()
    message = f"{where} prints\n{printed}\ninstead of\n{expected}"
    assert len(words) == len([w for w in wanted if w != "≈"]), message
    roughly = False
    for word in wanted:
        if word == "≈":
            roughly = True
            continue
        got = words.pop(0)
        assert NUMBER.sub("#", got) == NUMBER.sub("#", word), message
        for a, b in zip(NUMBER.findall(got), NUMBER.findall(word), strict=True):
            digits = len(b.partition(".")[2])
            slack = 0.1 * abs(float(b)) if roughly else 1.01 * 10.0**-digits
            assert abs(float(a) - float(b)) <= slack, message
        roughly = False


def with_code(pages: dict[str, str]) -> list[str]:
    return [page for page, text in pages.items() if list(blocks(text))]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A temporary folder to write to, and JAX as it was before, afterwards."""
    monkeypatch.chdir(tmp_path)
    x64 = jax.config.read("jax_enable_x64")
    yield
    jax.config.update("jax_enable_x64", x64)


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=pytest.mark.slow) if p in LONG else p for p in with_code(PAGES)],
)
def test_its_code_runs(page, elsewhere):
    text = PAGES[page]
    for words, instead in SHORTENED.get(page, {}).items():
        assert words in text
        text = text.replace(words, instead)
    run(page, text)


@pytest.mark.slow
@pytest.mark.parametrize("page", SHORTENED)
def test_its_code_runs_as_it_stands(page, elsewhere):
    run(page, PAGES[page])


# The tests above can fail


def test_a_page_that_lies_is_found():
    page = "Text.\n\n```python\nprint(1.25)\n```\n\n```text\n{}\n```\n"
    run("page", page.format("1.25"))
    run("page", page.format("≈ 1.3"))
    for wrong in ("1.27", "1.25 more", "one", "≈ 1.4"):
        with pytest.raises(AssertionError, match="page, line 3 prints"):
            run("page", page.format(wrong))
    assert not list(blocks("<!-- not run: no reason -->\n\n```python\n1/0\n```\n"))
    with pytest.raises(ZeroDivisionError):
        run("page", "```python\n1/0\n```\n")


# The benchmarks' commands


COMMAND = r"python (?:\.\./)*benchmarks/(\w+\.py)"
COMMANDS = sorted(
    {
        (script, " ".join(arguments.replace("\\\n", " ").split()))
        for text in [*PAGES.values(), *(p.read_text() for p in ROOT.glob("benchmarks/*.py"))]
        for pattern in (rf"`[^`\n]*{COMMAND}([^`]*)`", rf"^ *{COMMAND}((?:[^`\n\\]|\\\n)*)$")
        for script, arguments in re.findall(pattern, text, re.MULTILINE)
        if "ArgumentParser" in (ROOT / "benchmarks" / script).read_text()
    }
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands_of_the_benchmarks_parse(command, monkeypatch):
    script, arguments = command

    class Parsed(Exception):
        pass

    def parsed(self, args=None, namespace=None):
        parse(self, args, namespace)
        raise Parsed

    parse = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    monkeypatch.setattr(sys, "argv", [script, *shlex.split(arguments, comments=True)])
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    with pytest.raises(Parsed):
        runpy.run_path(str(ROOT / "benchmarks" / script), run_name="__main__")


def test_the_version_is_stated_once():
    """The package's own; what is cited is the same."""
    assert f"version: {rcig_eqx.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert importlib.metadata.version("rcig-eqx") == rcig_eqx.__version__
