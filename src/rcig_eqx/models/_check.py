"""Whether a function makes a network for a data set, and what it makes in plain values."""

from typing import Any

import equinox as eqx
import jax.random as jr

from .._coreset import Coreset
from ..data._dataset import noun
from ._architectures import describe_network
from ._network import AbstractNetwork, MakeModel, check_independent
from ._training import AbstractBatchNetwork, has_statistics


def check_model(make_model: MakeModel, coreset: Coreset) -> None:
    """Raise `ValueError` unless the function makes a network for these images and classes."""
    advice = (
        "pass a function from a key to a network, such as convnet_for(train.image_shape, "
        "train.num_classes)."
    )
    if isinstance(make_model, AbstractNetwork) or not callable(make_model):
        raise ValueError(f"model is a {type(make_model).__name__}: {advice}")
    try:
        model = eqx.filter_eval_shape(make_model, jr.key(0))
    except TypeError as error:
        raise ValueError(f"model cannot be called with a key ({error}): {advice}") from error
    if not isinstance(model, AbstractNetwork):
        raise ValueError(
            f"model= made a {type(model).__name__}; it must be a function from a key to an "
            "rcig_eqx.models.AbstractNetwork, such as convnet_for(...), or a models.Network made "
            "of your own module."
        )
    if has_statistics(model) and not isinstance(model, AbstractBatchNetwork):
        raise ValueError(
            f"{type(model).__name__} stores statistics of batches, which it must know to move: "
            "make it an rcig_eqx.models.AbstractBatchNetwork."
        )
    what, of = noun(coreset.images.shape[1:]), coreset.images.shape[1:]
    try:
        outputs = eqx.filter_eval_shape(model, coreset.images)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The network does not take {what} {of}: build it for {what} of this shape. It says: "
            f"{str(error).splitlines()[0]}"
        ) from error
    if not model.independent:
        check_independent(make_model(jr.key(0)), coreset.images[0])
    if outputs.shape[:-1] != coreset.labels.shape[:1]:
        raise ValueError(
            f"The network gives outputs of shape {outputs.shape} for {len(coreset.images)} {what}: "
            "it must give one row per input, [n classes]."
        )
    if outputs.shape != coreset.labels.shape:
        raise ValueError(
            f"The network gives {outputs.shape[-1]} outputs for {coreset.num_classes} classes: "
            f"build it with num_classes={coreset.num_classes}."
        )


def describe_model(make_model: MakeModel) -> dict[str, Any]:
    """A network in plain values, enough to build a ready one again."""
    return describe_network(eqx.filter_eval_shape(make_model, jr.key(0)))
