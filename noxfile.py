"""The common jobs by name: `nox -s lint`, `types`, `tests`, `slow`, `lowest`, `docs`."""

import nox

nox.options.sessions = ["lint", "types", "tests", "docs"]
nox.options.default_venv_backend = "uv|virtualenv"


@nox.session
def lint(session: nox.Session) -> None:
    """Style of the code."""
    session.install("ruff>=0.9")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Types of the library and the tests."""
    session.install("-e", ".[dev]")
    session.run("pyright")


@nox.session
def tests(session: nox.Session) -> None:
    """The default suite; arguments go to pytest."""
    session.install("-e", ".[dev]")
    session.run("pytest", *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    """The tests that train for minutes."""
    session.install("-e", ".[dev]")
    session.run("pytest", "-m", "slow", *session.posargs)


@nox.session(python="3.11", venv_backend="uv")
def lowest(session: nox.Session) -> None:
    """The default suite on the oldest Python with the lowest dependencies."""
    session.install("--resolution", "lowest-direct", "-e", ".[dev]")
    session.run("pytest", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """The site; a broken reference fails."""
    session.install("-e", ".[docs]")
    session.run("mkdocs", "build", "--strict")
