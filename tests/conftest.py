"""How every test process compiles, and those it starts: compiling is most of what tests take."""

import builtins
import os
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

CACHE = Path(__file__).parents[1] / ".pytest_cache" / "jax"
# The fusion emitters take much of the time that compiling without optimizing takes. XLA ends the
# process at a flag that it does not know, and another version may not know this one.
QUICK = "--xla_cpu_use_fusion_emitters=false" if jax.__version__.startswith("0.10.") else ""


def pytest_configure(config: pytest.Config) -> None:
    """Compile a program once for all processes, and in the default run without much optimizing."""
    quick = config.option.markexpr == "not slow"
    settings = {
        "jax_compilation_cache_dir": str(CACHE),
        "jax_persistent_cache_min_compile_time_secs": 0.3,
        "jax_disable_most_optimizations": quick,
    }
    flags = os.environ.get("XLA_FLAGS", "")
    if quick and QUICK not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {QUICK}"
    for name, value in settings.items():
        if name.upper() not in os.environ:
            os.environ[name.upper()] = str(value)
            jax.config.update(name, value)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests may take as long as they do."""
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(0))


@pytest.fixture(scope="module", autouse=True)
def _programs_let_go() -> Iterator[None]:
    """A compiled program is a few memory mappings, of which Linux grants a process 65,530."""
    yield
    jax.clear_caches()


@pytest.fixture
def without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No module of scikit-learn can be imported."""
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
