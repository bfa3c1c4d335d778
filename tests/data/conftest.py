"""No test here may see this user's cache, environment or system folders unless it asks to."""

import jaxtyping
import pytest


@pytest.fixture
def unhooked(monkeypatch):
    """Calls as users make them: without the hook that checks signatures before the library does."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(autouse=True)
def isolated(tmp_path_factory, monkeypatch):
    from rcig_eqx.data import _load

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv(_load.ENVIRONMENT, raising=False)
    monkeypatch.setattr(_load, "SYSTEM_FOLDER", tmp_path_factory.mktemp("system"))
