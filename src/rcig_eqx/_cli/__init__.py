"""The command line: a thin shell over `distill`, `evaluate`, `export` and what they write."""

import collections
import contextlib
import os
import platform
import re
import signal
import sys
import warnings
from typing import Annotated, Any

import jax

try:
    from typer import Exit, Option, Typer
except ImportError:
    sys.exit("The command line needs typer: pip install 'rcig-eqx[cli]'")

from .._checks import ArgumentError
from .._describe import versions
from ..io._terminal import Unfailing, echo
from ..reproduce._command import ReproduceOptions, reproduce
from ..run._loop import received
from ._compare import CompareOptions, compare_command
from ._config import configured
from ._distill import distill_command
from ._evaluate import EvaluateOptions, ExportOptions, evaluate_command, export_command
from ._judge import JudgeOptions, judge_command
from ._options import command, option_of
from ._run_options import DistillOptions

app = Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # whose help cuts names short in a narrow terminal
)
command(app, "distill", DistillOptions, configured)(distill_command)
command(app, "compare", CompareOptions)(compare_command)
command(app, "evaluate", EvaluateOptions)(evaluate_command)
command(app, "judge", JudgeOptions)(judge_command)
command(app, "export", ExportOptions)(export_command)
command(app, "reproduce", ReproduceOptions)(reproduce)


def _show_version(wanted: bool) -> bool:
    if wanted:
        shown = [f"{name} {version}" for name, version in versions().items()]
        echo(f"{', '.join(shown)}, Python {platform.python_version()}")
        kinds = collections.Counter(f"{d.platform} ({d.device_kind})" for d in jax.devices())
        echo("Devices: " + ", ".join(f"{number} {kind}" for kind, number in kinds.items()))
        raise Exit
    return wanted


@app.callback()
def _root(
    version: Annotated[
        bool,
        Option(
            "--version", callback=_show_version, is_eager=True, help="Print versions and devices."
        ),
    ] = False,
) -> None:
    """Distill image data sets into a few synthetic images per class."""


def run() -> None:
    """The command `rcig-eqx`: `main`, then the end of the process.

    After Ctrl-C a computation may still be going on in XLA's threads, which Python cannot end:
    leaving the usual way may crash.
    """
    try:
        main()
    except SystemExit as end:
        for status in (_INTERRUPTED, *map(_status_of, received)):
            if end.code == status:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        raise


def _status_of(number: int) -> int:
    """What shells call the end of a process by a signal."""
    return 128 + number


_INTERRUPTED = _status_of(signal.SIGINT)
_BROKEN_PIPE = _status_of(13)  # SIGPIPE, which Windows has not


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. Errors of the library end it with one line and exit code 2.

    What cannot be printed ends nothing: the command does its work, and its status tells.
    """
    out: Any = Unfailing(sys.stdout)
    err: Any = Unfailing(sys.stderr)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            _main(arguments)
    except SystemExit as end:
        if out.failed and not end.code:
            sys.exit(_BROKEN_PIPE if isinstance(out.failed, BrokenPipeError) else 1)
        raise


def _main(arguments: list[str] | None) -> None:
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: echo(f"Warning: {message}", err=True)
            app(arguments, prog_name="rcig-eqx")
    except (ValueError, OSError, ImportError) as error:
        # JAX's own note is about a traceback that is not shown.
        notes = [n for n in getattr(error, "__notes__", []) if "internal frames" not in n]
        said = re.sub(r"^\[Errno \d+\] ", "", str(error))
        if isinstance(error, ArgumentError):
            said = f"{option_of(error.argument)} {error.problem}"
        message = " ".join([said, *notes])
        echo(f"Error: {' '.join(message.split())}", err=True)
        sys.exit(2)
