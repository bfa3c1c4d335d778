"""Dataset distillation with convexified implicit gradients, in Equinox."""

from . import (
    bilevel as bilevel,
    data as data,
    evaluation as evaluation,
    initializers as initializers,
    io as io,
    methods as methods,
    models as models,
    operators as operators,
    parameterizations as parameterizations,
    presets as presets,
    privacy as privacy,
    reproduce as reproduce,
    run as run,
    solvers as solvers,
)
from ._algorithm import State as State, init as init
from ._coreset import Coreset as Coreset
from ._distill import distill as distill
from ._losses import (
    AbstractOuterLoss as AbstractOuterLoss,
    SquaredError as SquaredError,
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
from .bilevel import (
    hypergradient as hypergradient,
    implicitly_differentiable as implicitly_differentiable,
)
from .evaluation._across import cross_evaluate as cross_evaluate
from .evaluation._best import KeepBest as KeepBest
from .evaluation._evaluate import evaluate as evaluate
from .evaluation._judge import judge as judge
from .io._export import export as export
from .io._load_export import load_export as load_export
from .io._plot import save_grid as save_grid
from .io._report import save_report as save_report
from .io._result import DistillResult as DistillResult, load_result as load_result
from .models import convnet_for as convnet_for
from .run._checkpoint import (
    Checkpoints as Checkpoints,
    load_state as load_state,
    save_state as save_state,
)
from .run._guard import step as step
from .run._limit import TimeLimit as TimeLimit
from .run._memory import estimate_memory as estimate_memory
from .run._step import tune as tune

__version__ = "0.1.0"

# So that help() lists them.
__all__ = [name for name in dir() if not name.startswith("_")]  # pyright: ignore[reportUnsupportedDunderAll]
