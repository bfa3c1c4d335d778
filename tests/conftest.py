"""How every test process compiles, and those it starts: compiling is most of what tests take."""

import os
from pathlib import Path

import jax
import pytest

CACHE = Path(__file__).parents[1] / ".pytest_cache" / "jax"


def pytest_configure(config: pytest.Config) -> None:
    """Compile a program once for all processes, and in the default run without much optimising."""
    settings = {
        "jax_compilation_cache_dir": str(CACHE),
        "jax_persistent_cache_min_compile_time_secs": 0.3,
        "jax_disable_most_optimizations": config.option.markexpr == "not slow",
    }
    for name, value in settings.items():
        if name.upper() not in os.environ:
            os.environ[name.upper()] = str(value)
            jax.config.update(name, value)
