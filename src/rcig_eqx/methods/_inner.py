"""The inner problem that a distilled set poses to a network, in the paper's four forms."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree, Scalar

from .._backend import zeros
from .._linearize import Linearization, linearize
from .._losses import SQUARED_ERROR, InnerLoss, check_quadratic, is_quadratic
from .._ridge import ridge_head
from .._subsample import in_chunks
from .._trees import squared_norm
from ..models import AbstractNetwork, partition, split_parameters

# What a network makes of some inputs before its head: features and offset, its predictions being
# offset + features @ θ_F. The inputs of a set meet in these and nowhere else.
Nodes = tuple[Float[Array, "n features"], Float[Array, "n classes"]]
# The nodes of some inputs as a function of the body's parameters.
Expansion = Callable[[PyTree], Nodes]


class InnerProblem(eqx.Module):
    """ℓ(f(X_S), y_S) + λ/2 ‖θ‖² over θ = (θ_B, θ_F), λ = l2_rate·n, with two switches.

    The weights of ℓ, if any, are of all the inputs, mirrored ones counted.
    A linearized network's θ is a displacement from the model's parameters, zero at the start;
    another's are the parameters themselves. Reparameterized, the inner variable is θ_B alone, and
    θ_F the ridge solution θ_F*(θ_B) (paper, equations 3 to 5). The θ_B of the L2 term is how far
    the body has moved then (equation 4), whether the network is linearized or not: an ordinary
    one's whole weights would outweigh ℓ by far, and the inner problem be to shrink them.

    The inner variable is a pair: the body's parameters, and the head's or `None`.

    Raises `ValueError` where the head is to be solved for and the loss is no `SquaredError`.
    """

    model: AbstractNetwork
    linearized: bool = eqx.field(static=True)
    reparameterized: bool = eqx.field(static=True)
    l2_rate: float | Scalar
    dtype: DTypeLike | None = eqx.field(static=True, default=None)
    inner_loss: InnerLoss = SQUARED_ERROR

    def __check_init__(self):
        if self.reparameterized:
            check_quadratic(self.inner_loss, "a reparameterized method solves for the head")

    @property
    def quadratic(self) -> bool:
        """Whether the inner loss is a quadratic function of the inner variable."""
        return self.linearized and is_quadratic(self.inner_loss)

    @property
    def weights(self) -> Float[Array, "n classes"] | None:
        """Those of the inner loss, if it has any."""
        return self.inner_loss.weights if is_quadratic(self.inner_loss) else None

    def start(self) -> PyTree:
        """The inner variable before the first step."""
        theta = self.restrict(split_parameters(self.model)[0])
        return zeros(theta) if self.linearized else theta

    def restrict(self, parameters: AbstractNetwork) -> PyTree:
        """The inner variable out of a network's parameters."""
        body, head = partition(parameters)
        return body, (None if self.reparameterized else head)

    def pad(self, theta: PyTree) -> AbstractNetwork:
        """The inner variable as a network's parameters, the head's zero if it has none."""
        _, head = partition(split_parameters(self.model)[0])
        return eqx.combine(theta[0], zeros(head) if theta[1] is None else theta[1])

    def expand(self, inputs: Float[Array, "n *shape"]) -> Expansion:
        """The network at some inputs."""
        if self.linearized:
            return self.linear(linearize(self.model, inputs))

        def nodes(body: PyTree) -> Nodes:
            network = eqx.combine(body, self.model)

            def apply(inputs: Array) -> Nodes:
                features = network.features(inputs)
                offset = jnp.zeros_like(features, shape=(len(inputs), network.head.bias.size))
                return features, offset + network.head.bias[None]

            return in_chunks(apply, inputs)

        return nodes

    def linear(self, at: Linearization) -> Expansion:
        """The linearized network at some inputs."""
        return lambda body: (at.features, at.jvp(self.pad((body, None))))

    def along(self, at: Expansion, theta_B: PyTree, v_B: PyTree) -> tuple[Nodes, Nodes]:
        """Nodes at θ_B and their tangent along v_B; linearized features have none."""
        nodes, (features_dot, offset_dot) = jax.jvp(at, (theta_B,), (v_B,))
        return nodes, (zeros(nodes[0]) if self.linearized else features_dot, offset_dot)

    def no_nodes(self, labels: Float[Array, "n classes"]) -> Nodes:
        """Nodes of zero, which are no constants to the compiler, as in `zeros`."""
        kernel, zero = self.model.head.kernel, 0 * labels[0, 0]
        features = jnp.zeros((len(labels), kernel.shape[0]), kernel.dtype)
        return features + zero.astype(kernel.dtype), zeros(labels)

    def split(
        self, theta: PyTree, nodes: Nodes, labels: Float[Array, "n classes"]
    ) -> tuple[PyTree, Float[Array, "features classes"]]:
        """(θ_B, θ_F) of an inner variable, given the distilled set's nodes at θ_B."""
        body, head = theta
        if head is not None:
            return body, head.head.kernel
        features, offset = nodes
        l2 = self.l2_rate * len(labels)
        weights = self.weights
        return body, ridge_head(features, labels - offset, l2, weights=weights, dtype=self.dtype)

    def outputs(
        self, theta: PyTree, nodes: Nodes, labels: Float[Array, "n classes"], at: Expansion
    ) -> Float[Array, "b classes"]:
        """Predictions at other inputs, given the distilled set's nodes at θ_B (equation 6)."""
        theta_B, theta_F = self.split(theta, nodes, labels)
        return predict(at(theta_B), theta_F)

    def residuals(
        self, theta: PyTree, nodes: Nodes, labels: Float[Array, "n classes"]
    ) -> tuple[Float[Array, "n classes"], PyTree]:
        """f(X_S) and (θ_B, θ_F) of the L2 term: what `loss_of` makes the inner loss of."""
        theta_B, theta_F = self.split(theta, nodes, labels)
        if self.reparameterized and not self.linearized:
            theta_B = jax.tree.map(jnp.subtract, theta_B, self.start()[0])
        return predict(nodes, theta_F), (theta_B, theta_F)

    def loss(self, theta: PyTree, nodes: Nodes, labels: Float[Array, "n classes"]) -> Scalar:
        """The inner loss, given the distilled set's nodes at θ_B."""
        return self.loss_of(self.residuals(theta, nodes, labels), labels)

    def loss_of(
        self, residuals: tuple[Float[Array, "n classes"], PyTree], labels: Float[Array, "n classes"]
    ) -> Scalar:
        """The inner loss of f(X_S) and (θ_B, θ_F), convex in them if ℓ is."""
        predictions, parameters = residuals
        l2 = self.l2_rate * len(labels)
        return self.inner_loss(predictions, labels) + 0.5 * l2 * squared_norm(parameters)


def predict(nodes: Nodes, theta_F: Array) -> Float[Array, "n classes"]:
    """offset + features @ θ_F."""
    features, offset = nodes
    return offset + features @ theta_F
