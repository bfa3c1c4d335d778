"""`run.toml`: the options of a run, written into its folder and read back from there."""

import dataclasses
import importlib.metadata
import tomllib
import typing
from pathlib import Path
from typing import Any, TypeVar

from .._checks import ArgumentError, check_known
from ..data._paths import user_path
from ..io._files import write_atomically
from ._options import Named

NAME = "run.toml"
T = TypeVar("T", bound=Any)

_OF_A_COMMAND = {"out", "overwrite", "resume", "config", "quiet"}  # and not of the run
# What may differ where a run goes on. The data may have moved: the checkpoint knows its images.
_FREE = {
    "dataset", "directory", "workers", "devices", "steps", "minutes", "checkpoint_every", "log",
    "evaluate_", "networks", "evaluation_steps", "metric", "full", "full_accuracy",
}  # fmt: skip
# Either stands in for the other: a command that names one leaves the file's out.
_ALTERNATIVES = ({"steps", "minutes"}, {"images_per_class", "storage"})


def configured(asked: T, named: Named) -> T:
    """The options that a command names, the rest from its `--config` or the run it resumes."""
    if asked.config is not None:
        if asked.resume:
            raise ArgumentError("config", "and --resume name settings each: leave one out.")
        return _filled(asked, named, read_settings(user_path(asked.config), type(asked)))
    file = asked.folder / NAME
    if not asked.resume:
        return asked
    if not file.exists():
        if "dataset" not in named and not asked.file.exists() and not asked.kept:
            raise FileNotFoundError(
                f"{asked.folder} holds no run to resume: name its folder with --out."
            )
        return asked
    return filled(asked, named, file)


def filled(asked: T, named: Named, file: Path) -> T:
    """The options of a run that goes on: those named, the rest by its file.

    Raises `ValueError` for a named one that would make it another run.
    """
    stored = read_settings(file, type(asked))
    usual = {field.name: field.default for field in dataclasses.fields(asked)}
    for name in sorted(named - _FREE - _OF_A_COMMAND):
        here, there = getattr(asked, name), stored.get(name, usual[name])
        if here != there:
            raise ArgumentError(
                name,
                f"is {here}, and {_shown(there)} in {file}: leave it out, or choose another --out.",
            )
    return _filled(asked, named, stored)


def _shown(value: Any) -> str:
    return "was left out" if value is None else f"is {value}"


def _filled(asked: T, named: Named, stored: dict[str, Any]) -> T:
    """Options with those of a file where the command names none."""
    kept = set(named).union(*(pair for pair in _ALTERNATIVES if pair & named))
    return dataclasses.replace(asked, **{k: v for k, v in stored.items() if k not in kept})


class SettingsFile:
    """Writes a run's options as asked, once: as a callback, after the first step.

    `found` are those that the data and the hardware decided.
    """

    def __init__(self, asked: Any, **found: Any):
        self.file, self.options = asked.folder / NAME, vars(asked) | found
        self.written = False

    def __call__(self, _: object = None) -> None:
        """Write, if that has not been done."""
        if self.written:
            return
        import tomli_w

        options = {k: v for k, v in self.options.items() if k not in _OF_A_COMMAND}
        content = {
            _called(name): str(value) if isinstance(value, Path) else value
            for name, value in options.items()
            if value is not None
        }
        version = importlib.metadata.version("rcig-eqx")
        head = f"# rcig-eqx {version}; `rcig-eqx distill --config {NAME}` asks for the same.\n"
        write_atomically(self.file, (head + tomli_w.dumps(content)).encode())
        self.written = True


def read_settings(file: Path, options: type) -> dict[str, Any]:
    """The options in a file. `ValueError` for what is none, or has a value of another kind."""
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # no UTF-8, or no TOML
        raise ValueError(f"{file} cannot be read as TOML: {error}.") from error
    hints = typing.get_type_hints(options)
    known = {_called(name): name for name in hints if name not in _OF_A_COMMAND}
    found = {}
    for key, value in content.items():
        check_known(f"an option in {file}", key, known)
        name = known[key]
        found[name] = _as(hints[name], value, f"{key} in {file}")
    return found


def _as(hint: Any, value: Any, what: str) -> Any:
    """A value of a TOML file as an option has it."""
    from beartype.door import is_bearable

    others = {str: Path, int: float}
    for candidate in (value, others.get(type(value), type(value))(value)):
        if is_bearable(candidate, hint):
            return candidate
    raise ValueError(f"{what} is {value!r}: write it as the command line takes it.")


def _called(name: str) -> str:
    """An option's name in the file: that on the command line."""
    return name.rstrip("_").replace("_", "-")
