"""What the commands' options have in common, and how a command takes them: as one value."""

import dataclasses
import inspect
import shlex
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from typer import Context, Option, Typer
from typer.models import ArgumentInfo

from ..evaluation import METRICS, evaluate_full
from ..evaluation._evaluate import evaluate
from ..models._architectures import NETWORKS
from ..models._normalize import NORMALIZATIONS

ARCHITECTURE = f"The network: {', '.join(NETWORKS)}."
NORMALIZATION = f"Its normalization: {', '.join(NORMALIZATIONS)}."
WIDTH, DEPTH = "Filters of the network's first block.", "Blocks of a convnet."
USUAL_WIDTH = "the network's own; a convnet's by image size on a CPU"
NUM_NETWORKS: int = inspect.signature(evaluate).parameters["num_networks"].default
Networks = Annotated[int, Option(min=1, help="Fresh networks to evaluate with.")]
Metrics = Annotated[
    list[str] | None,
    Option(
        "--metric",
        help=f"Measured beside the accuracy: {', '.join(METRICS)}; may be given several times.",
        show_default=False,
    ),
]
Seed = Annotated[int, Option(help="The same seed gives the same result.")]
Directory = Annotated[
    Path | None,
    Option(help="Folder to look for the data set in first.", show_default=False),
]
Quiet = Annotated[bool, Option("--quiet", "-q", help="Print the outcome only.")]

Augment = Annotated[
    str | None,
    Option(
        help="Change the real images and the distilled ones at random at every step: 'paper' for "
        "the paper's augmentation, or operations such as flip_crop.",
        show_default=False,
    ),
]
EvaluationSteps = Annotated[
    int | None,
    Option(
        "--steps",
        "--evaluation-steps",
        min=1,
        help="Training steps of each.",
        show_default="by the set's size",
    ),
]
Width = Annotated[int | None, Option(help=WIDTH, show_default="as distilled")]
Json = Annotated[
    Path | None,
    Option("--json", help="Write the numbers to this file too.", show_default=False),
]

Size = Annotated[
    int | None,
    Option(
        help="Bring the middle square of every image to so many pixels.",
        show_default="as they are; 32 for photos of several sizes",
    ),
]
Channels = Annotated[
    int | None,
    Option(help="1 reads every image as gray, 3 as RGB.", show_default="as they are"),
]
HoldOut = Annotated[
    float | None,
    Option(
        help="Hold out so much of each class to test on, such as 0.2; 0 for nothing.",
        show_default="0.2 of a set without a test split",
    ),
]
SkipCorrupt = Annotated[
    bool, Option("--skip-corrupt", help="Pass over photos that cannot be read, and name them.")
]
Balanced = Annotated[
    bool | None,
    Option(
        "--balanced/--no-balanced",
        help="Take as many real images of each class in a step.",
        show_default="balanced if a class has over 3 times as many images as another",
    ),
]
Full = Annotated[
    bool, Option("--full/--no-full", help="Train on all of the training data too, to compare with.")
]
FullAccuracy = Annotated[
    float | None,
    Option(
        min=0,
        max=1,
        help="The accuracy known of all of the training data, in place of training on it.",
        show_default=False,
    ),
]
EPOCHS: int = inspect.signature(evaluate_full).parameters["epochs"].default
Epochs = Annotated[int, Option(min=1, help="Of the training on all of the data.")]

_CALLED = {
    "part": "hold_out",
    "folder": "out",
    "every": "checkpoint_every",
    "num_networks": "networks",
    "metrics": "metric",
}
_KNOWN: set[str] = set()


Named = frozenset[str]  # the options that a command names


def command(
    app: Typer, name: str, options: type, complete: Callable[[Any, Named], Any] | None = None
) -> Callable[[Callable], Callable]:
    """Make a function of one value, a dataclass of options, a command of these options.

    `complete` may fill in the options that the command does not name.
    """
    fields = inspect.signature(options)
    _KNOWN.update(fields.parameters)
    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=Context)

    def register(function: Callable[[Any], None]) -> Callable[[Any], None]:
        def call(context: Any, **given: Any) -> None:
            asked = options(**given)
            if complete:
                source = context.get_parameter_source
                named = (k for k in given if getattr(source(k), "name", "") == "COMMANDLINE")
                asked = complete(asked, frozenset(named))
            function(asked)

        call.__doc__ = function.__doc__
        hints = typing.get_type_hints(options, include_extras=True)
        call.__annotations__ = {"context": Context, **hints}
        call.__signature__ = fields.replace(  # pyright: ignore[reportFunctionMemberAccess]
            parameters=[*fields.parameters.values(), context]
        )
        app.command(name)(call)
        return function

    return register


def command_of(name: str, asked: Any, **shown: Any) -> str:
    """The command line that asks for the same; `shown` has values to show in place of the own."""
    words = ["rcig-eqx", name]
    kinds = typing.get_type_hints(type(asked), include_extras=True)
    for field in dataclasses.fields(asked):
        value = shown.get(field.name, getattr(asked, field.name))
        if value == field.default:
            continue
        declared = kinds[field.name].__metadata__[0]
        if isinstance(declared, ArgumentInfo):
            words.append(str(value))
            continue
        names = [d for d in declared.param_decls or () if d.startswith("--")]
        option, _, negated = (names or [f"--{field.name.replace('_', '-')}"])[0].partition("/")
        if isinstance(value, bool):
            words.append(option if value else negated)
            continue
        for each in value if isinstance(value, list) else [value]:
            words += [option, str(each)]
    return shlex.join(words)


def option_of(argument: str) -> str:
    """What an argument of the library is called here."""
    name = _CALLED.get(argument, argument)
    return f"--{name.replace('_', '-')}" if name in _KNOWN else argument
