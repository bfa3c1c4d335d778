"""The command `rcig-eqx distill`."""

import dataclasses
import signal
from pathlib import Path
from typing import Any

import jax.random as jr
from typer import Exit

from .._checks import check_known
from .._distill import distill
from .._recipe import Recipe, coreset_optimizer
from ..data import AbstractImages
from ..data._dataset import noun
from ..evaluation import METRICS
from ..evaluation._classes import match_classes
from ..evaluation._evaluate import evaluate, fresh_network
from ..initializers import INITIALIZERS
from ..io._files import sweep
from ..io._lock import hold, releasing
from ..io._plot import drawing, has_pictures, save_grid
from ..io._result import DistillResult
from ..io._terminal import echo
from ..methods import METHODS
from ..models import MakeModel, network_for
from ..models._architectures import default_architecture
from ..parameterizations import PARAMETERIZATIONS
from ..parameterizations._budget import check_storage
from ..run._checkpoint import Checkpoints
from ..run._devices import first_devices
from ..run._loop import received
from ..run._progress import of_steps
from ..run.loggers import LOGGERS
from ._config import SettingsFile
from ._folder import check_free, earlier_kept
from ._held_out import Split, to_distill
from ._images import (
    Images,
    check_writable,
    echo_paths,
    evaluation_key,
    say_networks,
    say_stored,
    shown_name,
    write_report,
)
from ._page import page_of_run, repeating, write_page
from ._photos import Reading
from ._run_options import DistillOptions
from ._time import steps_to_take, time_limit, width_for


@releasing()
def distill_command(asked: DistillOptions) -> None:
    """Distill a data set, and compare the result with as many random real images."""
    if asked.storage is not None:
        check_storage(asked.storage)
    check_writable(asked.folder)
    hold(asked.folder)
    check_free(asked)
    strategies, limit = _strategies(asked), time_limit(asked)
    reading = Reading(
        asked.directory, asked.size, asked.channels, asked.skip_corrupt, quiet=asked.quiet
    )
    train, split = to_distill(asked.dataset, reading, asked.hold_out, test=asked.evaluate_)
    if isinstance(train, AbstractImages):
        train.workers = asked.workers
    architecture = asked.architecture or default_architecture(train.image_shape)
    width = width_for(asked, architecture, train.image_shape)
    model = network_for(
        architecture,
        train.image_shape,
        train.num_classes,
        width=width,
        depth=asked.depth,
        normalization=asked.normalization,
    )
    if split.test is not None:  # before the run, not after it
        match_classes(split.test, train.class_names, train.num_classes)
    if asked.resume and asked.file.exists() and not asked.kept:
        raise FileNotFoundError(
            f"{asked.file} is there, but no checkpoint of its run: pass --overwrite to start anew."
        )
    choice = None
    if asked.selection is not None:
        whole, (train, choice) = len(train), asked.selection.split(train)
        asked.say(f"Held out {choice.images:,} of {whole:,} training images to choose a set by.")
        strategies["callbacks"].append(choice.best)
    part = split.recipe.get("hold_out", {}).get("part", 0.0)
    found: dict[str, Any] = {"width": width, "images_per_class": asked.count, "hold_out": part}
    settings = SettingsFile(asked, **found)
    strategies["callbacks"] += [settings, *([limit] if limit else [])]
    signals = len(received)
    result = _run(asked, train, model, strategies)
    settings()
    if choice is not None:
        result, said = choice.of(result)
        asked.say(said)
    seed, learning_rate = asked.seed, asked.learning_rate
    name = shown_name(asked.dataset)
    of = {"dataset": name, "seed": seed, "learning_rate": learning_rate}
    of["command"] = repeating(dataclasses.replace(asked, width=width), name)
    if limit and limit.reached and len(received) == signals:  # it ended as asked
        of |= {"steps": result.recipe["steps_done"], "minutes": limit.minutes}
    result = dataclasses.replace(result, recipe=result.recipe | of | split.recipe)
    written = [result.save(asked.file)]
    if has_pictures(result.coreset):
        with drawing():
            title = f"{Path(asked.dataset).stem}, {result.recipe['images_per_class']} per class"
            picture = asked.file.with_suffix(".png")
            written.append(save_grid(result.coreset, result.class_names, picture, title=title))
    if result.interrupted and not (choice and choice.best.ended):
        step = of_steps(result.recipe["steps_done"], asked.outer_steps)
        echo(
            f"Stopped after {step}. The result so far is kept; rcig-eqx distill --resume --out "
            f"{asked.folder} goes on."
        )
        echo_paths([*written, *write_page(asked.folder, result)])
        raise Exit(128 + (received or [signal.SIGINT])[-1])
    if limit:
        taken = float(result.history["seconds"][-1]) / 60
        echo(f"Reached step {result.recipe['steps_done']:,} in {taken:.1f} min.")
    if split.test is not None:
        written += _evaluated(asked, result, split, written)
    else:
        written += write_page(asked.folder, result, full=asked.full_accuracy)
    if split.test is None and asked.evaluate_:
        asked.say(
            f"{asked.dataset} has no test split: not evaluated. See rcig-eqx evaluate --data."
        )
    echo_paths(written)


def _strategies(asked: DistillOptions) -> dict[str, Any]:
    """What is asked for by name, as arguments of `distill`."""
    logs: list[str] = ["jsonl", *(asked.log or [])]
    loggers = [LOGGERS.find("log", name) for name in dict.fromkeys(logs)]
    recipe = Recipe(
        METHODS.find("method", asked.method)() if asked.method else None,
        optimizer=coreset_optimizer(asked.learning_rate),
        parameterization=PARAMETERIZATIONS.find("parameterization", asked.parameterization)(),
        flip=asked.flip,
        augment=True if asked.augment == "paper" else asked.augment,
        balanced=asked.balanced,
    )
    check_known("initialization", asked.initialization, INITIALIZERS)
    for name in asked.metric or []:
        check_known("metrics", name, METRICS)
    return {
        "initialization": asked.initialization,
        "recipe": recipe,
        "devices": first_devices(asked.devices),
        "callbacks": [make(asked.folder) for make in loggers],
    }


def _run(
    asked: DistillOptions, train: Images, model: MakeModel, strategies: dict[str, Any]
) -> DistillResult:
    """The run itself, with checkpoints beside the result."""
    sweep(asked.folder, asked.file.name)
    asked.say(
        f"Distilling {asked.dataset} ({len(train):,} {noun(train.image_shape)}, "
        f"{train.num_classes} classes) to {asked.amount} {asked.length}. Ctrl-C stops and keeps "
        "the result; --resume goes on."
    )
    with earlier_kept(asked):
        return distill(
            train,
            images_per_class=asked.count,
            storage=asked.storage,
            key=jr.key(asked.seed),
            model=model,
            steps=steps_to_take(asked),
            batch_size=asked.batch_size,
            checkpoint_dir=Checkpoints(
                asked.checkpoints, asked.checkpoint_every, keep=2, resume=asked.resume
            ),
            progress=not asked.quiet,
            **strategies,
        )


def _evaluated(
    asked: DistillOptions, result: DistillResult, split: Split, written: list[Path]
) -> list[Path]:
    """The files of the result's evaluation, which is printed."""
    test = split.test
    assert test is not None, "there are test images"
    fresh = say_networks(fresh_network(result), asked.networks)
    asked.say(f"Evaluating {say_stored(result)} on {len(test):,} {split.name} images with {fresh}.")
    try:
        report = evaluate(
            result,
            test,
            key=evaluation_key(asked.seed),
            num_networks=asked.networks,
            steps=asked.evaluation_steps,
            metrics=asked.metric or (),
            progress=not asked.quiet,
        )
    except KeyboardInterrupt:
        echo("Evaluation stopped. The distilled set is kept:")
        echo_paths([*written, *write_page(asked.folder, result)])
        raise Exit(128 + signal.SIGINT) from None
    path = asked.folder / "evaluation.json"
    write_report(path, result, report, asked.dataset, split.name, test, asked.seed)
    echo(f"\n{report}\n")
    return [path, *page_of_run(asked, result, report, split, [*written, path])]
