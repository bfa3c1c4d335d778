"""Attacks on one network: from what it says of an image to whether it was trained on it."""

import abc
import functools
import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.random as jr
import numpy as np
from jaxtyping import Float, Int, PRNGKeyArray, Shaped

from ._roc import Auc, auc

_FOLDS = 2
_FEWEST = 20  # members, and others, that a trained attack needs


class Observations(eqx.Module):
    """What an attacker sees of a network, image by image.

    - `logits`: `[n classes]`, its outputs.
    - `loss`: `[n]`, its loss at the image's true label.
    """

    logits: Float[np.ndarray, "n classes"]
    loss: Float[np.ndarray, " n"]

    def features(self) -> Float[np.ndarray, "n features"]:
        """Logits and loss side by side: what a trained attacker goes by."""
        return np.column_stack([self.logits, self.loss])

    def take(self, rows: Int[np.ndarray, " m"]) -> "Observations":
        """The observations of these images."""
        return Observations(self.logits[rows], self.loss[rows])


Scores = tuple[Shaped[np.ndarray, " m"], Shaped[np.ndarray, " n"]]


class AbstractAttack(eqx.Module):
    """A membership-inference attack on one network. Subclass it for one of your own.

    `attack(members, others, key=key)` is its area under the ROC curve.
    """

    name: eqx.AbstractVar[str]

    @abc.abstractmethod
    def scores(
        self, members: Observations, others: Observations, *, key: PRNGKeyArray
    ) -> tuple[Scores, ...]:
        """`(scores of members, scores of others)` of each attacker that was trained.

        A higher score says member. No attacker may score an image it was trained on.
        """

    def __call__(self, members: Observations, others: Observations, *, key: PRNGKeyArray) -> Auc:
        """The mean area under the ROC curves of the attackers.

        Each is scored on images that it has not seen, so that its own area is unbiased; their
        errors are taken as fully correlated, since each was trained on what the others are scored
        on. That makes the interval too wide rather than too narrow.
        """
        areas = [auc(m, o) for m, o in self.scores(members, others, key=key)]
        value, error = np.mean([(area.value, area.error) for area in areas], axis=0)
        return Auc(float(value), float(error))


class Threshold(AbstractAttack):
    """Calls an image a member whose loss is below a threshold. Nothing is trained; NumPy alone."""

    name: str = "threshold"

    def scores(
        self, members: Observations, others: Observations, *, key: PRNGKeyArray
    ) -> tuple[Scores, ...]:
        del key
        return ((-members.loss, -others.loss),)


class TrainedAttack(AbstractAttack):
    """A classifier trained on one half of the images and scored on the other, and the reverse.

    As many members as others, drawn at random; the features are logits and loss.

    - `name`: what it is called in reports.
    - `make`: a function from a seed to a classifier with scikit-learn's `fit` and `predict_proba`.
    """

    name: str
    make: Callable[[int], Any]

    def scores(
        self, members: Observations, others: Observations, *, key: PRNGKeyArray
    ) -> tuple[Scores, ...]:
        rng = np.random.default_rng(np.asarray(jr.bits(key, (4,), np.uint32)))
        count = min(len(members.loss), len(others.loss)) // _FOLDS * _FOLDS
        if count < _FEWEST:
            raise ValueError(
                f"There are {len(members.loss)} members and {len(others.loss)} others: a trained "
                f"attack needs {_FEWEST} of each; privacy.Threshold() needs two."
            )
        folds = []
        for side in (members, others):
            chosen = rng.permutation(len(side.loss))[:count]
            folds.append(np.split(side.take(chosen).features(), _FOLDS))
        is_member = np.repeat([True, False], count - count // _FOLDS)
        scored = []
        for held_out in range(_FOLDS):
            seen = [x for fold in folds for i, x in enumerate(fold) if i != held_out]
            classifier = self.make(int(rng.integers(2**31)))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # one that has not converged is an attack as well
                classifier.fit(np.concatenate(seen), is_member)
            member = list(classifier.classes_).index(True)
            scored.append(
                tuple(classifier.predict_proba(fold[held_out])[:, member] for fold in folds)
            )
        return tuple(scored)


def logistic_regression() -> TrainedAttack:
    """Logistic regression on standardized features. Needs scikit-learn, the extra `privacy`."""
    classifier = _sklearn().linear_model.LogisticRegression
    return TrainedAttack("LR", lambda seed: _standardized(classifier(random_state=seed)))


def mlp(hidden: tuple[int, ...] = (64,)) -> TrainedAttack:
    """A ReLU network with `hidden` units a layer, stopped when a tenth held back gets no better.

    Needs scikit-learn, the extra `privacy`.
    """
    given = {"learning_rate_init": 3e-3, "alpha": 1e-3, "early_stopping": True}
    classifier = functools.partial(_sklearn().neural_network.MLPClassifier, hidden, **given)
    return TrainedAttack("MLP", lambda seed: _standardized(classifier(random_state=seed)))


def random_forest(trees: int = 100) -> TrainedAttack:
    """A random forest with five images per leaf at least. Needs scikit-learn, extra `privacy`."""
    classifier = functools.partial(_sklearn().ensemble.RandomForestClassifier, trees)
    return TrainedAttack("RF", lambda seed: classifier(min_samples_leaf=5, random_state=seed))


def nearest_neighbors(neighbors: int = 15) -> TrainedAttack:
    """Votes of the nearest images, features standardized. Needs scikit-learn, as all of these."""
    classifier = _sklearn().neighbors.KNeighborsClassifier
    return TrainedAttack("KNN", lambda _: _standardized(classifier(neighbors)))


def all_attacks() -> tuple[AbstractAttack, ...]:
    """The five of the paper's Table 5, one fixed setting each, where TensorFlow Privacy, which the
    paper uses, searches a grid. Needs scikit-learn, the extra `privacy`."""
    return (Threshold(), logistic_regression(), mlp(), random_forest(), nearest_neighbors())


def _standardized(classifier: Any) -> Any:
    sklearn = _sklearn()
    return sklearn.pipeline.make_pipeline(sklearn.preprocessing.StandardScaler(), classifier)


def _sklearn() -> Any:
    try:
        import sklearn.ensemble
        import sklearn.linear_model
        import sklearn.neighbors
        import sklearn.neural_network
        import sklearn.pipeline
        import sklearn.preprocessing
    except ImportError as error:
        raise ImportError(
            "This attack needs scikit-learn: pip install 'rcig-eqx[privacy]'. "
            "privacy.Threshold() does without."
        ) from error
    return sklearn
