"""The best distilled set of a run, by real images that it was not distilled from."""

import os
from typing import Any

import numpy as np
from jaxtyping import PRNGKeyArray

from .._checks import check_counts, check_key
from ..data import AbstractImages, Dataset
from ..data._paths import user_path
from ..io._result import DistillResult, load_result
from ..run._progress import Progress
from ._evaluate import evaluate
from ._report import Evaluation


class KeepBest:
    """A callback that tests the set now and then, keeps the best, and stops when none is better.

        train, validation = data.hold_out(train, 0.1, seed=0)
        best = KeepBest(validation, every=200, key=key)
        distill(train, …, callbacks=[best])
        evaluate(best.result, test, key=other_key)  # read once, at the end, by other networks

    **Arguments:**

    - `validation`: real images held out of the training set, never the test set: an accuracy that
      a set was chosen by is no measurement of it.
    - `every`: steps between two tests.
    - `patience`: the run ends after so many tests in a row without a better one; `None` for never.
    - `num_networks`, and further `options` of [`evaluate`][rcig_eqx.evaluate]: of a test.
    - `key`: the fresh networks' seeds, the same at every test, so that sets are compared by them.
      Measure the result with another key, on the test set: it was chosen to suit these networks
      and these images.
    - `path`: a file that the best so far is saved in, to outlive the process. One that is there
      already, as of a run that is resumed, is tested first and stays if nothing is better.

    `result` is the best so far as a `DistillResult`, `None` before the first test; `history` has
    `(step, Evaluation)` of every test. `ended` tells whether patience has ended the run.
    """

    def __init__(
        self,
        validation: Dataset | AbstractImages,
        *,
        every: int,
        key: PRNGKeyArray,
        patience: int | None = None,
        num_networks: int = 3,
        path: str | os.PathLike[str] | None = None,
        **options: Any,
    ):
        check_counts(every=every, num_networks=num_networks)
        check_key(key)
        if patience is not None:
            check_counts(patience=patience)
        if not isinstance(validation, Dataset | AbstractImages):
            raise ValueError(
                f"validation is a {type(validation).__name__}: pass a Dataset, as hold_out returns."
            )
        self.result: DistillResult | None = None
        self.history: list[tuple[int, Evaluation]] = []
        self.ended = False
        self._validation, self._every, self._key = validation, every, key
        self._patience, self._path = patience, None if path is None else user_path(path)
        self._options: Any = {"num_networks": num_networks, "progress": False, "baseline": False}
        self._options |= options

    def __call__(self, progress: Progress) -> bool:
        """Test, where one is due; `True` once patience is at its end."""
        if progress.step % self._every and progress.step < progress.steps:
            return False
        self.test(progress.result())
        best = int(np.argmax([report.mean for _, report in self.history]))
        since = len(self.history) - 1 - best
        self.ended = self._patience is not None and since >= self._patience
        return self.ended

    def test(self, result: DistillResult) -> None:
        """Test a set, and keep it if it is better than all before, one in `path` included."""
        if not self.history and self._path is not None and self._path.exists():
            self._is_better(load_result(self._path))
        if self._is_better(result) and self._path is not None:
            result.save(self._path)

    def _is_better(self, result: DistillResult) -> bool:
        """Whether a result is better than all before; the first one is."""
        report = evaluate(result, self._validation, key=self._key, **self._options)
        better = all(report.mean > earlier.mean for _, earlier in self.history)
        self.history.append((result.recipe["steps_done"], report))
        if better:
            self.result = result
        return better
