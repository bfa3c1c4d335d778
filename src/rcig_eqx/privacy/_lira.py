"""The likelihood-ratio attack: what networks with an image say of it, against those without.

Carlini, Chien, Nasr, Song, Terzis, Tramèr: *Membership inference attacks from first principles*,
2022. An area under a curve can be near 1/2 while a few images are given away for certain; the
true-positive rate at a low false-positive rate shows them.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Float64, Int, Num, PRNGKeyArray, Shaped

from .._backend import networks_at_once
from .._checks import check_counts, check_key
from .._console import track
from ..data._arrays import plain_array
from ..evaluation._measure import each_row
from ..evaluation._train_network import outputs_of
from ._roc import Auc, Roc, roc
from ._train import Images, Train, confidence

_FEW = 64  # networks with or without an image, below which one variance serves all (Carlini et al.)
_RESAMPLES = 200


class Shadows(eqx.Module):
    """Networks trained on known halves of the images, and how sure each is of every image.

    - `confidence`: `[networks n]`, φ = log(p / (1 − p)) of the true label.
    - `inside`: `[networks n]`, whether the network was trained on the image. Networks 2j and 2j+1
      have one half each.
    """

    confidence: Float[np.ndarray, "networks n"]
    inside: Bool[np.ndarray, "networks n"]


def train_shadows(
    train: Train,
    images: Images,
    labels: Shaped[Array | np.ndarray, " n"],
    *,
    key: PRNGKeyArray,
    num_shadows: int = 16,
    at_once: int | None = None,
    jit: bool = True,
    progress: bool = True,
) -> Shadows:
    """Train networks on random halves of the images, each half's complement as well.

    **Arguments:**

    - `train`: a function `(images [m *shape], labels [m], key)` to a function from images to
      logits, such as [`train_on`][rcig_eqx.privacy.train_on] or
      [`distill_then_train`][rcig_eqx.privacy.distill_then_train] make.
    - `images`: `[n *shape]`, as `train` takes them, an even number.
    - `labels`: integers `[n]`.
    - `key`: source of all randomness.
    - `num_shadows`: networks, an even number of at least 6: each image is in half of them.
    - `at_once`: networks trained together by `vmap`; chosen by the backend if `None`.
    - `jit`: whether `train` can be jitted. If not it is called with NumPy arrays, one at a time.
    - `progress`: whether to show a progress bar.
    """
    check_key(key)
    check_counts(num_shadows=num_shadows, at_once=1 if at_once is None else at_once)
    if num_shadows < 6 or num_shadows % 2:
        raise ValueError(f"num_shadows is {num_shadows}: choose an even number of at least 6.")
    images = plain_array(np.asanyarray(images), "images")
    labels = plain_array(np.asanyarray(labels), "labels")
    n = len(images)
    if n < 4 or n % 2 or len(labels) != n or labels.dtype.kind not in "iu":
        raise ValueError(
            f"images are {images.shape} and labels {labels.dtype}{list(labels.shape)}: pass an "
            "even number of images, at least 4, and one integer label each."
        )
    half_key, *keys = jr.split(key, 1 + num_shadows)
    rng = np.random.default_rng(np.asarray(jr.bits(half_key, (4,), np.uint32)))
    orders = [rng.permutation(n) for _ in range(num_shadows // 2)]
    chosen = np.stack([np.sort(half) for order in orders for half in np.split(order, 2)])
    inside = np.zeros((num_shadows, n), bool)
    np.put_along_axis(inside, chosen, True, axis=1)
    whole = jnp.asarray(images), jnp.asarray(labels, jnp.int32)
    if not jit:
        rows = track(list(zip(chosen, keys, strict=True)), "shadows", shown=progress)
        sure = [_confidence(train(images[c], labels[c], k), *whole)[None] for c, k in rows]
        return Shadows(np.concatenate(sure), inside)
    at_once = min(at_once or networks_at_once(num_shadows), num_shadows)
    sure = []
    for start in track(range(0, num_shadows, at_once), "shadows", shown=progress):
        own = slice(start, start + at_once)
        try:
            made = _train_and_score(train, *whole, jnp.asarray(chosen[own]), jnp.stack(keys[own]))
        except jax.errors.TracerArrayConversionError as error:
            raise ValueError("train cannot be jitted: pass jit=False to train_shadows.") from error
        sure.append(np.asarray(made))
    return Shadows(np.concatenate(sure), inside)


@eqx.filter_jit
def _confidence(
    predict: Callable[[Any], Array], images: Num[Array, "n *shape"], labels: Int[Array, " n"]
) -> Float[Array, " n"]:
    return confidence(outputs_of(predict, images), labels)


@eqx.filter_jit
def _train_and_score(
    train: Train,
    images: Num[Array, "n *shape"],
    labels: Int[Array, " n"],
    chosen: Int[Array, "networks m"],
    keys: Shaped[Array, "networks ..."],
) -> Float[Array, "networks n"]:
    def one(chosen: Array, key: PRNGKeyArray) -> Array:
        return _confidence(train(images[chosen], labels[chosen], key), images, labels)

    return each_row(one, chosen, keys)


def likelihood_ratio(
    target: Float[np.ndarray, " n"],
    shadows: Shadows,
    *,
    offline: bool = False,
    fixed_variance: bool | None = None,
) -> Float64[np.ndarray, " n"]:
    """How much likelier what a network says of each image is with the image than without.

    Online: log N(φ; μ_in, σ_in²) − log N(φ; μ_out, σ_out²), Gaussians fitted to what the shadow
    networks with and without the image say. Offline: (φ − μ_out) / σ_out, a one-sided test that
    takes networks without the image alone.

    **Arguments:**

    - `target`: `[n]`, the φ of the network under attack.
    - `shadows`: none of them the target.
    - `offline`: which of the two.
    - `fixed_variance`: one variance for all images in place of one each; if `None`, where an image
      has fewer than 64 networks on either side.

    Raises `ValueError` if an image has too few networks: one on each side, two with its own
    variance.
    """
    sides = (~shadows.inside,) if offline else (~shadows.inside, shadows.inside)
    fewest = min(int(side.sum(0).min()) for side in sides)
    fixed_variance = fewest < _FEW if fixed_variance is None else fixed_variance
    most = max(int(side.sum(0).max()) for side in sides)
    if fewest < (1 if fixed_variance else 2) or most < 2:
        raise ValueError(
            f"Some images have only {fewest} shadow networks on one side: train more shadows."
        )
    target = np.asarray(target, np.float64)
    terms = []
    for side in sides:
        mean, variance = _fit(shadows.confidence, side, fixed_variance)
        squared = (target - mean) ** 2 / variance
        if offline:
            return (target - mean) / np.sqrt(variance)
        terms.append(-(squared + np.log(variance)) / 2)
    return terms[1] - terms[0]


def _fit(
    values: Float[np.ndarray, "networks n"], side: Bool[np.ndarray, "networks n"], fixed: bool
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """Each image's mean over the networks of one side, and its variance or everybody's."""
    values, count = np.asarray(values, np.float64), side.sum(0)
    mean = np.where(side, values, 0).sum(0) / count
    squares = np.where(side, (values - mean) ** 2, 0).sum(0)
    variance = squares.sum() / (count - 1).sum() if fixed else squares / (count - 1)
    return mean, np.broadcast_to(np.maximum(variance, 1e-12), mean.shape)


@dataclasses.dataclass(frozen=True)
class LiraReport:
    """What the likelihood-ratio attack reaches against networks attacked in turn.

    - `curve`: the ROC curve of all networks and images together.
    - `auc`: its area.
    - `tpr`: `{false-positive rate: (true-positive rate, standard error)}` at 0.1% and 1%; NaN
      below the smallest rate that shows.
    - `networks`, `images`: how many were attacked.
    - `offline`: which of the two forms.

    Errors are by a bootstrap over the images, so that an image counts once however many networks
    were asked about it; they do not say how another training run would turn out.
    """

    curve: Roc
    auc: Auc
    tpr: dict[float, tuple[float, float]]
    networks: int
    images: int
    offline: bool

    def __str__(self) -> str:
        form = "offline" if self.offline else "online"
        lines = [
            f"likelihood-ratio attack, {form}: {self.networks} networks, {self.images} images",
            f"AUC               {self.auc}",
        ]
        for fpr, (tpr, error) in self.tpr.items():
            at = f"TPR at {fpr:.1%} FPR"
            said = "too few images" if math.isnan(tpr) else f"{tpr:.2%} ± {1.96 * error:.2%}"
            lines.append(f"{at:<18}{said}")
        lines.append(f"smallest FPR      {self.curve.smallest_fpr:.2g}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Everything but the curve as plain values, `null` for NaN."""
        tpr = [{"fpr": fpr, "value": x, "error": e} for fpr, (x, e) in self.tpr.items()]
        tpr = [{k: None if math.isnan(v) else v for k, v in each.items()} for each in tpr]
        return {
            "attack": "lira",
            "offline": self.offline,
            "networks": self.networks,
            "images": self.images,
            "auc": dataclasses.asdict(self.auc),
            "tpr": tpr,
            "smallest_fpr": self.curve.smallest_fpr,
        }


def lira(
    shadows: Shadows,
    *,
    key: PRNGKeyArray,
    offline: bool = False,
    fixed_variance: bool | None = None,
) -> LiraReport:
    """Attack every shadow network by all the others, and put the scores together.

    The network with the other half is left out as well, so that every image has as many networks
    with it as without: two of each at least, which six shadows leave.

    **Arguments:**

    - `shadows`: of [`train_shadows`][rcig_eqx.privacy.train_shadows].
    - `key`: of the bootstrap.
    - `offline`, `fixed_variance`: as in `likelihood_ratio`.
    """
    check_key(key)
    inside = shadows.inside
    if len(inside) % 2 or not (inside[::2] ^ inside[1::2]).all():
        raise ValueError(
            "shadows are not in pairs, one half of the images each: make them with train_shadows, "
            "or attack a network of your own with likelihood_ratio."
        )
    scores = np.empty(inside.shape)
    for t in range(len(inside)):
        rest = np.arange(len(inside)) // 2 != t // 2
        others = Shadows(shadows.confidence[rest], inside[rest])
        scores[t] = likelihood_ratio(
            shadows.confidence[t], others, offline=offline, fixed_variance=fixed_variance
        )
    rng = np.random.default_rng(np.asarray(jr.bits(key, (4,), np.uint32)))
    curve = roc(scores[inside], scores[~inside])
    rates = (0.001, 0.01)
    again = []
    for _ in range(_RESAMPLES):
        drawn = rng.integers(inside.shape[1], size=inside.shape[1])
        s, i = scores[:, drawn], inside[:, drawn]
        one = roc(s[i], s[~i])
        again.append([one.area, *(one.tpr_at(fpr) for fpr in rates)])
    errors = np.std(again, axis=0, ddof=1)
    tpr = {fpr: (curve.tpr_at(fpr), float(e)) for fpr, e in zip(rates, errors[1:], strict=True)}
    networks, images = inside.shape
    return LiraReport(curve, Auc(curve.area, float(errors[0])), tpr, networks, images, offline)
