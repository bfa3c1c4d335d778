"""The best distilled set of a run, by real images that it was not distilled from."""

import os
from typing import Any

import numpy as np
from jaxtyping import PRNGKeyArray

from ._distill import check_counts, check_key
from ._evaluate import evaluate, fresh_network
from ._evaluation import Evaluation
from ._progress import Progress
from ._result import DistillResult
from .data import Dataset


class KeepBest:
    """A callback that tests the set now and then, keeps the best, and stops when none is better.

        train, validation = data.hold_out(train, 0.1, seed=0)
        best = KeepBest(validation, every=200, key=key)
        distill(train, …, callbacks=[best])
        evaluate(best.result, test, key=key)  # the test set is read once, at the end

    **Arguments:**

    - `validation`: real images held out of the training set, never the test set: an accuracy that
      a set was chosen by is no measurement of it.
    - `every`: steps between two tests.
    - `patience`: the run ends after so many tests in a row without a better one; `None` for never.
    - `num_networks`, and further `options` of [`evaluate`][rcig_eqx.evaluate]: of a test.
    - `key`: the fresh networks' seeds, the same at every test, so that sets are compared by them.
    - `path`: a file that the best so far is saved in, to outlive the process. A run that is resumed
      starts comparing anew.

    `result` is the best so far as a `DistillResult`, `None` before the first test; `history` has
    `(step, Evaluation)` of every test.
    """

    def __init__(
        self,
        validation: Dataset,
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
        if not isinstance(validation, Dataset):
            raise ValueError(
                f"validation is a {type(validation).__name__}: pass a Dataset, as hold_out returns."
            )
        self.result: DistillResult | None = None
        self.history: list[tuple[int, Evaluation]] = []
        self._validation, self._every, self._key = validation, every, key
        self._patience, self._path = patience, path
        self._options = {"num_networks": num_networks, "progress": False} | options

    def __call__(self, progress: Progress) -> bool:
        """Test, where one is due; `True` once patience is at its end."""
        if progress.step % self._every and progress.step < progress.steps:
            return False
        result = progress.result()
        options: Any = {"model": fresh_network(result)} | self._options
        report = evaluate(result.coreset, self._validation, key=self._key, **options)
        self.history.append((progress.step, report))
        means = [report.mean for _, report in self.history]
        best = int(np.argmax(means))
        if best == len(means) - 1:
            self.result = result
            if self._path is not None:
                result.save(self._path)
        return self._patience is not None and len(means) - 1 - best >= self._patience
