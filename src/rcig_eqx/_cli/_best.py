"""`rcig-eqx distill --keep-best`: images held out of the training set, and the set they choose."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import jax.random as jr
from typer import Option

from .._checks import ArgumentError
from ..data import hold_out
from ..evaluation._best import KeepBest
from ..io._result import DistillResult
from ..run._progress import OPEN
from ._images import Images

PART, TESTS = 0.1, 10  # of the training images, and tests of a run, if not said

KeepBestFlag = Annotated[
    bool,
    Option(
        "--keep-best",
        help="Keep the set that is best on a validation split, held out of the training images. "
        "--validation, --patience and --test-every imply it.",
    ),
]
Validation = Annotated[
    float | None,
    Option(help="Part of the training images held out to choose by.", show_default=f"{PART}"),
]
Patience = Annotated[
    int | None,
    Option(
        min=1,
        help="End the run after so many tests without a better set.",
        show_default="never",
    ),
]
TestEvery = Annotated[
    int | None,
    Option(
        min=1,
        help="Steps between tests on the validation split.",
        show_default="a tenth of the steps, 200 with --minutes alone",
    ),
]


def between_tests(steps: int) -> int:
    """Steps between two tests, if not said."""
    return max(1, steps // TESTS) if steps < OPEN else 200


@dataclasses.dataclass(frozen=True)
class Selection:
    """How the set that is kept is chosen.

    - `part`: of the training images that is held out.
    - `every`: steps between two tests; `patience`: of a `KeepBest`.
    - `steps`: training steps of a test's networks; `seed`: of the split and these networks.
    - `path`: where the best set so far is kept.
    """

    part: float
    every: int
    patience: int | None
    steps: int | None
    seed: int
    path: Path

    def split(self, train: Images) -> "tuple[Images, Choice]":
        """The training images that are left, and what chooses by the others."""
        try:
            left, validation = hold_out(
                train,  # pyright: ignore[reportArgumentType] - it says which sets it takes
                self.part,
                seed=self.seed,
            )
        except ValueError as error:
            raise ArgumentError("validation", f"cannot be held out: {error}") from error
        best = KeepBest(
            validation,
            every=self.every,
            # beside that of `evaluation_key`, which the test set is read with
            key=jr.fold_in(jr.key(self.seed), 2**31 + 1),
            patience=self.patience,
            steps=self.steps,
            path=self.path,
        )
        return left, Choice(best, self.part, len(validation))


@dataclasses.dataclass(frozen=True)
class Choice:
    """The best set so far, and by how much of the training images it was chosen."""

    best: KeepBest
    part: float
    images: int

    def of(self, result: DistillResult) -> tuple[DistillResult, str]:
        """A run's result with the best set in the place of the last, and what to say of it."""
        if not (self.best.history or result.interrupted):  # a run that was resumed at its end
            self.best.test(result)
        kept = self.best.result
        if kept is None:
            return result, "Kept the last set: none was tested on the validation images yet."
        reports = {step: report.mean for step, report in self.best.history}
        step = kept.recipe["steps_done"]
        chosen: dict[str, Any] = {
            "validation": self.part,
            "kept_step": step,
            "validation_accuracy": reports[step],
        }
        result = dataclasses.replace(
            result,
            coreset=kept.coreset,
            psi=kept.psi,
            packed=kept.packed,
            recipe=result.recipe | chosen,
        )
        ended = "Ended early, as no later set was better. " if self.best.ended else ""
        return result, (
            f"{ended}Kept the set of step {step:,} of {result.recipe['steps_done']:,}: "
            f"{reports[step]:.1%} on {self.images:,} validation images, "
            f"{self.best.history[-1][1].mean:.1%} at the last test."
        )
