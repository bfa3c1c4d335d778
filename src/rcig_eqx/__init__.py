"""Dataset distillation with convexified implicit gradients, in Equinox."""

from . import (
    data as data,
    initializers as initializers,
    methods as methods,
    models as models,
    parameterizations as parameterizations,
    presets as presets,
    privacy as privacy,
    reproduce as reproduce,
    solvers as solvers,
)
from ._algorithm import State as State, init as init
from ._bilevel import (
    RESULTS as RESULTS,
    GaussNewton as GaussNewton,
    LeastSquares as LeastSquares,
)
from ._coreset import (
    Coreset as Coreset,
    centered_labels as centered_labels,
    fold_temperature as fold_temperature,
    hard_labels as hard_labels,
)
from ._differentiable import implicitly_differentiable as implicitly_differentiable
from ._distill import distill as distill
from ._hypergradient import Hypergradient as Hypergradient, hypergradient as hypergradient
from ._linearize import Linearization as Linearization, linearize as linearize
from ._losses import (
    SquaredError as SquaredError,
    inner_loss as inner_loss,
    label_margin as label_margin,
    mse_loss as mse_loss,
    platt_loss as platt_loss,
)
from ._pool import PoolSchedule as PoolSchedule
from ._recipe import (
    Recipe as Recipe,
    coreset_optimizer as coreset_optimizer,
    ema as ema,
    falling_rate as falling_rate,
    growing_average as growing_average,
)
from ._ridge import kernel_ridge as kernel_ridge, ridge_head as ridge_head
from .evaluation._across import CrossEvaluation as CrossEvaluation, cross_evaluate as cross_evaluate
from .evaluation._augment import Augment as Augment, paper_strategy as paper_strategy
from .evaluation._best import KeepBest as KeepBest
from .evaluation._evaluate import correct as correct, evaluate as evaluate
from .evaluation._report import Evaluation as Evaluation
from .evaluation._train_network import (
    cross_entropy as cross_entropy,
    evaluation_schedule as evaluation_schedule,
    train_network as train_network,
    training_recipe as training_recipe,
)
from .initializers import AbstractInitializer as AbstractInitializer, real_coreset as real_coreset
from .io._export import export as export
from .io._load_export import Export as Export, load_export as load_export
from .io._plot import save_grid as save_grid, to_pixels as to_pixels
from .io._result import DistillResult as DistillResult, load_result as load_result
from .methods import (
    exact_hypergradient as exact_hypergradient,
    head_hypergradient as head_hypergradient,
)
from .models import (
    ConvNet as ConvNet,
    Network as Network,
    convnet_for as convnet_for,
    partition as partition,
)
from .parameterizations import AbstractParameterization as AbstractParameterization
from .run._checkpoint import (
    Checkpoints as Checkpoints,
    load_state as load_state,
    save_state as save_state,
)
from .run._devices import make_mesh as make_mesh, place as place, shard_rows as shard_rows
from .run._guard import step as step
from .run._memory import MemoryEstimate as MemoryEstimate, estimate_memory as estimate_memory
from .run._progress import Callback as Callback, Progress as Progress
from .run._step import tune as tune

# So that help() lists them.
__all__ = [name for name in dir() if not name.startswith("_")]  # pyright: ignore[reportUnsupportedDunderAll]
