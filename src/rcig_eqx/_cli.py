"""The command line: a thin shell over `distill`, `evaluate`, `export` and what they write."""

import contextlib
import dataclasses
import importlib.metadata
import inspect
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

import jax.random as jr

from . import methods
from ._classes import match_classes
from ._coreset import Initialization
from ._devices import first_devices
from ._distill import describe_model, distill
from ._evaluate import evaluate, fresh_network
from ._evaluation import Evaluation
from ._export import check_place, export
from ._files import sweep, write_atomically
from ._lock import hold, releasing
from ._loop import received
from ._plot import drawing, save_grid
from ._pool import MakeModel
from ._result import DistillResult, load_result
from ._step import coreset_optimizer
from ._terminal import Unfailing, echo
from .data import AbstractImages, DataError, Dataset, load, open_records
from .data._load import KNOWN, TOO_LARGE
from .data._paths import user_path
from .models import network_for
from .models._architectures import ARCHITECTURES
from .models._normalize import NORMALIZATIONS

try:
    from typer import Argument, Exit, Option, Typer
except ImportError:
    sys.exit("The command line needs typer: pip install 'rcig-eqx[cli]'")

from .reproduce._command import reproduce
from .reproduce._plan import frepo_platt

Images = Dataset | AbstractImages

_DISTILL, _EVALUATE = (inspect.signature(function).parameters for function in (distill, evaluate))


def _show_version(wanted: bool) -> bool:
    if wanted:
        echo(f"rcig-eqx {importlib.metadata.version('rcig-eqx')}")
        raise Exit
    return wanted


app = Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # whose help cuts names short in a narrow terminal
)


@app.callback()
def _root(
    version: Annotated[
        bool, Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Distil image data sets into a few synthetic images a class."""


_ARCHITECTURE = f"The network: {', '.join(ARCHITECTURES)}."
_NORMALIZATION = f"Its normalisation: {', '.join(NORMALIZATIONS)}."
_WIDTH, _DEPTH = "Filters of the network's first block.", "Blocks of a convnet."
Networks = Annotated[int, Option(min=1, help="Fresh networks to evaluate with.")]
Seed = Annotated[int, Option(help="The same seed gives the same result.")]
Directory = Annotated[
    Path | None,
    Option(help="Folder to look for the data set in first.", show_default=False),
]
Quiet = Annotated[bool, Option("--quiet", "-q", help="Print the outcome only.")]


@app.command("distill")
@releasing()
def _distill(
    dataset: Annotated[
        str,
        Argument(
            help=f"A data set's name ({', '.join(KNOWN)}, {TOO_LARGE}; fashion_mnist_small "
            "comes along), an .npz file or a folder."
        ),
    ] = "fashion_mnist_small",
    images_per_class: Annotated[
        int, Option("--images-per-class", "-n", help="Synthetic images of each class.")
    ] = 1,
    steps: Annotated[int, Option(help="Outer iterations.")] = _DISTILL["steps"].default,
    batch_size: Annotated[
        int | None,
        Option(help="Real images a step.", show_default="64 to 1024, by the distilled set's size"),
    ] = None,
    architecture: Annotated[str, Option(help=_ARCHITECTURE)] = "convnet",
    normalization: Annotated[str, Option(help=_NORMALIZATION)] = "none",
    width: Annotated[
        int | None, Option(help=_WIDTH, show_default="128; 64 of resnet18 and vgg11")
    ] = None,
    depth: Annotated[int | None, Option(help=_DEPTH, show_default="by image size")] = None,
    method: Annotated[
        Literal["rcig", "rcig_paper", "frepo", "frepo_platt", "rig", "cig", "vig", "random_subset"]
        | None,
        Option(
            help="How the hypergradient is computed; frepo_platt is frepo with the paper's outer "
            "loss in place of its own.",
            show_default="head-only for half of the steps or 1,000, then rcig",
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        Option(
            help="Of the distilled images and labels.",
            show_default="0.03 for 500 steps, then falling",
        ),
    ] = None,
    initialization: Annotated[Initialization, Option(help="What to start from.")] = _DISTILL[
        "initialization"
    ].default,
    flip: Annotated[
        bool | None,
        Option(
            "--flip/--no-flip",
            help="Let the set stand for its mirror images too.",
            show_default="flip up to 1,000 RGB images",
        ),
    ] = None,
    devices: Annotated[
        int | None, Option(min=1, help="Share every batch among so many.", show_default="one")
    ] = None,
    workers: Annotated[
        int, Option(min=0, help="Processes that read a set on disk ahead; threads if 0.")
    ] = _DISTILL["workers"].default,
    seed: Seed = 0,
    directory: Directory = None,
    out: Annotated[
        Path | None,
        Option(help="Folder for the result.", show_default="runs/<dataset>-<n>ipc"),
    ] = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace an earlier result.")] = False,
    resume: Annotated[
        bool, Option("--resume", help="Go on with a run that was interrupted, however it was.")
    ] = False,
    checkpoint_every: Annotated[
        float, Option(help="Seconds between checkpoints, in <out>/checkpoints.")
    ] = _DISTILL["checkpoint_every"].default,
    evaluate_: Annotated[
        bool, Option("--evaluate/--no-evaluate", help="Measure the test accuracy afterwards.")
    ] = True,
    networks: Networks = _EVALUATE["num_networks"].default,
    evaluation_steps: Annotated[
        int | None,
        Option(min=1, help="Training steps of each.", show_default="by the set's size"),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Distil a data set, and compare the result with as many random real images."""
    out = user_path(out or Path("runs") / f"{Path(dataset).stem}-{images_per_class}ipc")
    check_writable(out)
    hold(out)
    file = out / "distilled.safetensors"
    checkpoints = out / "checkpoints"
    if not (overwrite or resume):
        if file.exists():
            raise FileExistsError(
                f"{file} is there already: pass --overwrite, another --out, or --resume to go on."
            )
        if any(checkpoints.glob("*.safetensors")):
            raise FileExistsError(
                f"{checkpoints} holds an interrupted run: pass --resume to go on with it, "
                "--overwrite to start anew, or another --out."
            )
    shared_by = first_devices(devices)
    optimizer = coreset_optimizer(learning_rate)
    train = load_split(dataset, "train", directory)
    make_model = network_for(
        architecture,
        train.image_shape,
        train.num_classes,
        width=width,
        depth=depth,
        normalization=normalization,
    )
    test = load_test(dataset, directory) if evaluate_ else None
    if test is not None:
        match_classes(test, train.class_names, train.num_classes)  # before the run, not after it
    if resume and file.exists() and not any(checkpoints.glob("*.safetensors")):
        raise FileNotFoundError(
            f"{file} is there, but no checkpoint of its run: pass --overwrite to start anew."
        )
    sweep(out, file.name)
    earlier = checkpoints.with_name("checkpoints.earlier")
    if overwrite and not resume and checkpoints.exists():
        shutil.rmtree(earlier, ignore_errors=True)
        checkpoints.rename(earlier)

    say = (lambda text: None) if quiet else echo
    say(
        f"Distilling {dataset} ({len(train):,} images, {train.num_classes} classes) "
        f"to {images_per_class} a class in {steps:,} steps. Ctrl-C stops and keeps the result; "
        "--resume goes on."
    )
    try:
        result = distill(
            train,
            images_per_class=images_per_class,
            key=jr.key(seed),
            method=method and _method(method),
            model=make_model,
            optimizer=optimizer,
            steps=steps,
            batch_size=batch_size,
            initialization=initialization,
            flip=flip,
            devices=shared_by,
            workers=workers,
            checkpoint_dir=checkpoints,
            checkpoint_every=checkpoint_every,
            keep_checkpoints=2,
            resume=resume,
            progress=not quiet,
        )
    except (ValueError, OSError):  # what was there before is there again
        if earlier.exists() and not any(checkpoints.glob("*.safetensors")):
            shutil.rmtree(checkpoints, ignore_errors=True)
            earlier.rename(checkpoints)
        raise
    except KeyboardInterrupt:
        kept = any(checkpoints.glob("*.safetensors"))
        then = (
            "--resume goes on from the last checkpoint." if kept else "nothing was there to keep."
        )
        echo(f"Stopped at once: {then}", err=True)
        raise Exit(_INTERRUPTED) from None
    shutil.rmtree(earlier, ignore_errors=True)
    asked = {"dataset": shown_name(dataset), "seed": seed, "learning_rate": learning_rate}
    recipe = result.recipe | asked
    result = dataclasses.replace(result, recipe=recipe)
    written = [result.save(file)]
    with drawing():
        title = f"{Path(dataset).stem}, {images_per_class} a class"
        written.append(
            save_grid(result.coreset, result.class_names, file.with_suffix(".png"), title=title)
        )
    if result.interrupted:
        echo(
            f"Stopped after step {recipe['steps_done']:,} of {steps:,}. The result so far is kept; "
            "--resume goes on."
        )
        echo_paths(written)
        raise Exit(_status_of((received or [signal.SIGINT])[-1]))
    if test is not None:
        fresh = say_networks(fresh_network(result), networks)
        say(f"Evaluating on {len(test):,} test images with {fresh}.")
        try:
            report = evaluate(
                result,
                test,
                key=evaluation_key(seed),
                num_networks=networks,
                steps=evaluation_steps,
                progress=not quiet,
            )
        except KeyboardInterrupt:
            echo("Evaluation stopped. The distilled set is kept:")
            echo_paths(written)
            raise Exit(_INTERRUPTED) from None
        path = out / "evaluation.json"
        written.append(write_report(path, result, report, dataset, "test", test, seed))
        echo(f"\n{report}\n")
    elif evaluate_:
        say(f"{dataset} has no test split: not evaluated. See rcig-eqx evaluate --data.")
    echo_paths(written)


@app.command("evaluate")
def _evaluate(
    file: Annotated[Path, Argument(help="A distilled set: distilled.safetensors.")],
    data: Annotated[
        str | None,
        Option(help="Data set to test on.", show_default="the one that was distilled"),
    ] = None,
    split: Annotated[
        str | None,
        Option(help="Its split.", show_default="test; all of a file or folder without splits"),
    ] = None,
    networks: Networks = _EVALUATE["num_networks"].default,
    steps: Annotated[
        int | None,
        Option(
            "--steps",
            "--evaluation-steps",
            min=1,
            help="Training steps of each.",
            show_default="by the set's size",
        ),
    ] = None,
    architecture: Annotated[
        str | None, Option(help=_ARCHITECTURE, show_default="as distilled")
    ] = None,
    normalization: Annotated[
        str | None, Option(help=_NORMALIZATION, show_default="as distilled")
    ] = None,
    width: Annotated[int | None, Option(help=_WIDTH, show_default="as distilled")] = None,
    depth: Annotated[int | None, Option(help=_DEPTH, show_default="as distilled")] = None,
    augment: Annotated[
        str | None,
        Option(
            help="Change the images at random while networks train: 'paper' for the paper's "
            "augmentation, or operations such as flip_crop.",
            show_default=False,
        ),
    ] = None,
    labels: Annotated[
        Literal["learned", "hard"], Option(help="Hard ones are the class each ranks first.")
    ] = "learned",
    seed: Seed = 0,
    directory: Directory = None,
    json_: Annotated[
        Path | None,
        Option("--json", help="Write the numbers to this file too.", show_default=False),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Train fresh networks on a distilled set and test them on real images."""
    result = load_result(file)
    data, split, test = test_images(result, data, split, directory)
    if test is None:
        raise ValueError(f"{data} has no test split: name other images with --data.")
    if json_:
        json_ = user_path(json_)
        check_writable(json_.parent)
    model = fresh_network(
        result, architecture=architecture, normalization=normalization, width=width, depth=depth
    )
    if not quiet:
        echo(f"Evaluating on {len(test):,} images of {data} with {say_networks(model, networks)}.")
    report = evaluate(
        result,
        test,
        key=evaluation_key(seed),
        model=model,
        num_networks=networks,
        steps=steps,
        augment=True if augment == "paper" else augment,
        labels=labels,
        progress=not quiet,
    )
    written = [write_report(json_, result, report, data, split, test, seed)] if json_ else []
    echo(f"\n{report}\n")
    if written:
        echo_paths(written)


@app.command("export")
def _export(
    file: Annotated[Path, Argument(help="A distilled set: distilled.safetensors.")],
    folder: Annotated[
        Path | None, Argument(help="Folder to make.", show_default="export, beside the file")
    ] = None,
    evaluation: Annotated[
        Path | None,
        Option(
            help="Accuracies already measured, as `distill` and `evaluate --json` write them.",
            show_default="evaluation.json beside the file; measured anew if there is none",
        ),
    ] = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace an earlier export.")] = False,
    networks: Networks = _EVALUATE["num_networks"].default,
    steps: Annotated[
        int | None,
        Option(
            "--evaluation-steps", min=1, help="Of each network.", show_default="by the set's size"
        ),
    ] = None,
    seed: Seed = 0,
    directory: Directory = None,
    quiet: Quiet = False,
) -> None:
    """Write a distilled set as a folder that trains networks without this library."""
    file = user_path(file)
    result = load_result(file)
    folder = user_path(folder or file.parent / "export")
    check_place(folder, overwrite)
    check_writable(folder.parent)
    beside = file.parent / "evaluation.json"
    known = evaluation or (beside if beside.exists() else None)
    data, _, test = (None, None, None) if known else test_images(result, None, None, directory)
    report = None
    if known:
        known = user_path(known)
        report = read_report(known, result)
        if not quiet:
            echo(f"The card states the accuracies in {known}.")
    elif test is not None:
        if not quiet:
            fresh = say_networks(fresh_network(result), networks)
            echo(f"Evaluating on {len(test):,} images of {data} with {fresh}.")
        key = evaluation_key(seed)
        report = evaluate(
            result, test, key=key, num_networks=networks, steps=steps, progress=not quiet
        )
    elif not quiet:
        echo(f"{data} has no test split: the card states no accuracy.")
    echo_paths([export(result, folder, evaluation=report, overwrite=overwrite)])


app.command("reproduce")(reproduce)


def _method(name: str) -> methods.AbstractMethod:
    """A method by the name that `--method` takes."""
    return frepo_platt() if name == "frepo_platt" else getattr(methods, name)()


def say_networks(make_model: MakeModel, networks: int) -> str:
    """How many networks of which kind."""
    kind = describe_model(make_model)
    normalization = kind.get("normalization", "none")
    normalized = "without" if normalization == "none" else normalization
    fresh = f"{networks} fresh network{'s' * (networks > 1)}"
    return f"{fresh} ({kind['name']}, {normalized} normalisation)"


def test_images(
    result: DistillResult, data: str | None, split: str | None, directory: Path | None
) -> tuple[str, str, Images | None]:
    """Name, split and images to test on; images `None` if what was distilled has no test split."""
    distilled = str(result.recipe.get("dataset"))
    if data is None and distilled not in (*KNOWN, TOO_LARGE) and not user_path(distilled).exists():
        raise ValueError(
            f"The set was distilled from {distilled}, which is not here: run rcig-eqx evaluate "
            "with its path as --data."
        )
    data = data or distilled
    test = load_split(data, split, directory) if split else load_test(data, directory)
    if test is None and data != distilled:
        return data, "train", load_split(data, "train", directory)
    return data, split or "test", test


def load_split(dataset: str, split: str, directory: Path | None) -> Images:
    """A split in memory, or on disk, written there the first time, if it is too large."""
    directory = directory and user_path(directory)
    if dataset == TOO_LARGE:
        return open_records(dataset, split, directory=directory)
    return load(dataset, split, directory=directory)


def load_test(dataset: str, directory: Path | None) -> Images | None:
    """The test images, or `None` for a file or folder that has none."""
    try:
        return load_split(dataset, "test", directory)
    except DataError:
        raise
    except ValueError:
        if not user_path(dataset).exists():
            raise
        return None


def shown_name(dataset: str) -> str:
    """What a result calls a data set: no path outside the present folder, which is nobody's."""
    path = user_path(dataset)
    if not path.is_absolute() and ".." not in path.parts:
        return dataset
    return f"custom {path.name}" if path.name in KNOWN else path.name


def check_writable(folder: Path) -> None:
    """Raise `OSError` unless files can be written in the folder, or it can be made."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise OSError(f"Cannot write to {folder} ({error.strerror}): choose another.") from error


def evaluation_key(seed: int):
    """Fresh networks share nothing with those of the run of the same seed."""
    return jr.fold_in(jr.key(seed), 2**31)  # small numbers would repeat keys of jr.split


def write_report(
    path: Path,
    result: DistillResult,
    report: Evaluation,
    data: str,
    split: str,
    test: Images,
    seed: int,
) -> Path:
    """Everything an evaluation measured, as JSON."""
    content = {
        "data": shown_name(data),
        "split": split,
        "test_images": len(test),
        "seed": seed,
        **report.to_json(),
        "recipe": result.recipe,
    }
    write_atomically(path, json.dumps(content, indent=2).encode())
    return path


def read_report(path: Path, result: DistillResult) -> Evaluation:
    """What `write_report` wrote about this result, or `ValueError`."""
    try:
        content = json.loads(path.read_bytes())
        report = Evaluation.from_json(content)
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{path} is no evaluation: measure it anew with evaluate.") from error
    if content.get("recipe") != result.recipe:
        raise ValueError(f"{path} is of another result: name this one's with --evaluation.")
    return report


def echo_paths(paths: list[Path]) -> None:
    """Say what was written."""
    echo("Wrote " + "\n      ".join(map(str, paths)))


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

# What errors of the library call arguments that are options here.
_OPTIONS = {
    "resume=True": "--resume",
    "overwrite=True": "--overwrite",
    "checkpoint_dir": "--out",
    "images_per_class": "--images-per-class",
    "batch_size": "--batch-size",
    "directory=": "--directory ",
}


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
        message = re.sub(r"^\[Errno \d+\] ", "", " ".join([str(error), *notes]))
        for python, option in _OPTIONS.items():
            message = message.replace(python, option)
        echo(f"Error: {' '.join(message.split())}", err=True)
        sys.exit(2)
