"""Dataset distillation with convexified implicit gradients, in Equinox."""

from . import (
    bilevel as bilevel,
    data as data,
    methods as methods,
    models as models,
    operators as operators,
    presets as presets,
    privacy as privacy,
    reproduce as reproduce,
    solvers as solvers,
)
from ._across import CrossEvaluation as CrossEvaluation, cross_evaluate as cross_evaluate
from ._augment import Augment as Augment, paper_strategy as paper_strategy
from ._best import KeepBest as KeepBest
from ._checkpoint import load_state as load_state, save_state as save_state
from ._coreset import (
    AbstractParameterization as AbstractParameterization,
    Coreset as Coreset,
    centred_labels as centred_labels,
    ema as ema,
    fold_temperature as fold_temperature,
    growing_average as growing_average,
    hard_labels as hard_labels,
    noise_coreset as noise_coreset,
    real_coreset as real_coreset,
)
from ._devices import make_mesh as make_mesh, place as place, shard_rows as shard_rows
from ._distill import distill as distill
from ._evaluate import correct as correct, evaluate as evaluate
from ._evaluation import Evaluation as Evaluation
from ._export import export as export
from ._linearize import Linearization as Linearization, linearize as linearize
from ._load_export import Export as Export, load_export as load_export
from ._losses import (
    AbstractOuterLoss as AbstractOuterLoss,
    SquaredError as SquaredError,
    label_margin as label_margin,
    mse_loss as mse_loss,
    platt_loss as platt_loss,
)
from ._memory import MemoryEstimate as MemoryEstimate, estimate_memory as estimate_memory
from ._plot import save_grid as save_grid, to_pixels as to_pixels
from ._pool import PoolSchedule as PoolSchedule
from ._progress import Callback as Callback, Progress as Progress
from ._result import DistillResult as DistillResult, load_result as load_result
from ._ridge import kernel_ridge as kernel_ridge, ridge_head as ridge_head
from ._step import (
    Recipe as Recipe,
    State as State,
    coreset_optimizer as coreset_optimizer,
    falling_rate as falling_rate,
    init as init,
    step as step,
    tune as tune,
)
from ._train_network import (
    cross_entropy as cross_entropy,
    evaluation_schedule as evaluation_schedule,
    train_network as train_network,
    training_recipe as training_recipe,
)
from .bilevel import (
    RESULTS as RESULTS,
    GaussNewton as GaussNewton,
    Hypergradient as Hypergradient,
    LeastSquares as LeastSquares,
    hypergradient as hypergradient,
    implicitly_differentiable as implicitly_differentiable,
)
from .models import (
    ConvNet as ConvNet,
    Network as Network,
    convnet_for as convnet_for,
    partition as partition,
)

# So that help() lists them.
__all__ = [name for name in dir() if not name.startswith("_")]  # pyright: ignore[reportUnsupportedDunderAll]
