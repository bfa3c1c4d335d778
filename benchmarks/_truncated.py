"""The paper's truncated step, for comparison: Adam inner steps, Adam inverse-Hessian steps.

Written as favorably as its equations allow: the network is linearized once, so that neither
loop repeats a forward pass.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from rcig_eqx import platt_loss
from rcig_eqx._trees import squared_norm
from rcig_eqx.bilevel import Hypergradient
from rcig_eqx.methods import linearize, ridge_head
from rcig_eqx.methods._method import accuracy


def truncated_hypergradient(
    model,
    coreset,
    images,
    targets,
    *,
    inner_steps=20,
    inverse_steps=20,
    inner_rate=1e-3,
    inverse_rate=1e-2,
    l2_rate=5e-4,
):
    """Direct plus implicit gradient of the reparameterized problem (paper, Algorithm 1)."""
    l2 = l2_rate * len(coreset.labels)
    parameters = eqx.filter(model, eqx.is_inexact_array)
    is_body = eqx.tree_at(lambda m: m.head.kernel, jax.tree.map(lambda _: True, parameters), False)
    body_of = lambda theta: jax.tree.map(  # noqa: E731
        lambda x, keep: x if keep else jnp.zeros_like(x), theta, is_body
    )
    at_S, at_T = linearize(model, coreset.images), linearize(model, images)

    def inner(theta_B, at_S, labels):
        """Equation 5 with its L2 term; the optimal head is equation 3."""
        offset = at_S.jvp(theta_B)
        theta_F = ridge_head(at_S.features, labels - offset, l2)
        misfit = labels - offset - at_S.features @ theta_F
        return 0.5 * jnp.sum(misfit**2) + l2 / 2 * (squared_norm(theta_B) + squared_norm(theta_F))

    def inner_gradient(theta_B):
        return body_of(jax.grad(inner)(theta_B, at_S, coreset.labels))

    def adam(gradient, start, steps, rate):
        optimizer = optax.adam(rate)

        def step(_, carry):
            x, state = carry
            updates, state = optimizer.update(gradient(x), state)
            return optax.apply_updates(x, updates), state

        return jax.lax.fori_loop(0, steps, step, (start, optimizer.init(start)))[0]

    zero = jax.tree.map(jnp.zeros_like, parameters)
    theta_B = adam(inner_gradient, zero, inner_steps, inner_rate)

    def outer(theta_B, h_S, offset_S, coreset):
        theta_F = ridge_head(h_S, coreset.labels - offset_S, l2)
        f_T = at_T.jvp(theta_B) + at_T.features @ theta_F
        return platt_loss(f_T, targets, coreset.log_temperature), f_T

    offset = at_S.jvp(theta_B)
    (value, f_T), (g_T, h_bar, offset_bar, direct) = jax.value_and_grad(
        outer, argnums=(0, 1, 2, 3), has_aux=True
    )(theta_B, at_S.features, offset, coreset)
    g_T = body_of(jax.tree.map(jnp.add, g_T, at_S.vjp(offset_bar)))

    def residual(v):
        """H v − g_T, by forward over reverse (section 3.4)."""
        Hv = jax.jvp(inner_gradient, (theta_B,), (v,))[1]
        return jax.tree.map(jnp.subtract, Hv, g_T)

    v = adam(residual, zero, inverse_steps, inverse_rate)

    def through_images(X_S, labels):
        """What of the direct and of the implicit gradient goes through X_S and y_S."""
        at = linearize(model, X_S)
        direct = jnp.sum(h_bar * at.features) + jnp.sum(offset_bar * at.jvp(theta_B))
        slope = jax.jvp(lambda t: inner(t, at, labels), (theta_B,), (v,))[1]
        return direct - slope

    X_bar, y_bar = jax.grad(through_images, argnums=(0, 1))(coreset.images, coreset.labels)
    gradient = eqx.tree_at(lambda c: (c.images, c.labels), direct, (X_bar, direct.labels + y_bar))
    return Hypergradient(value, gradient, {"accuracy": accuracy(f_T, targets)})
