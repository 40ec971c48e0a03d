"""An actor and its critics, as parts of one model."""

import jax
import jax.numpy as jnp
from flax import linen as nn


class MLP(nn.Module):
    """Hidden layers with ReLU, and a linear one."""

    hidden_sizes: tuple[int, ...]
    num_outputs: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for size in self.hidden_sizes:
            x = nn.relu(nn.Dense(size)(x))
        return nn.Dense(self.num_outputs)(x)


class ActorCritics(nn.Module):
    """The parameters are `actor` and `critics`, of which the latter have an axis in front, one entry for each critic.

    Attributes:
        action_size: numbers that an action has.
        max_action: largest absolute value of each.
        num_critics: how many estimate the value of an action.
        hidden_sizes: of the actor and of each critic.
        stochastic: whether the actor draws its actions from a normal distribution, squashed by tanh, as in SAC.
    """

    action_size: int
    max_action: float
    num_critics: int
    hidden_sizes: tuple[int, ...]
    stochastic: bool

    def setup(self) -> None:
        self.actor = MLP(self.hidden_sizes, 2 * self.action_size if self.stochastic else self.action_size)
        several = nn.vmap(
            MLP, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, axis_size=self.num_critics
        )
        self.critics = several(self.hidden_sizes, 1)

    def __call__(self, observation: jax.Array, train: bool) -> jax.Array:
        """The values [critics, ...] of the actor's actions at observations [..., size]."""
        del train
        return self.value(observation, self.act(observation, jax.random.key(0))[0])

    def act(self, observation: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Actions [..., action_size] at observations [..., size], and the logarithm of their density [...].

        That of a deterministic actor's is 0.
        """
        outputs = self.actor(observation)
        if not self.stochastic:
            return self.max_action * jnp.tanh(outputs), jnp.zeros(outputs.shape[:-1])
        mean, log_std = jnp.split(outputs, 2, axis=-1)
        log_std = jnp.clip(log_std, -5, 2)
        noise = jax.random.normal(key, mean.shape)
        drawn = mean + jnp.exp(log_std) * noise
        log_prob = jax.scipy.stats.norm.logpdf(noise) - log_std
        # The slope of max_action * tanh; 1 - tanh(x)**2 would round to 0.
        log_prob -= jnp.log(4 * self.max_action) - 2 * drawn - 2 * nn.softplus(-2 * drawn)
        return self.max_action * jnp.tanh(drawn), log_prob.sum(axis=-1)

    def value(self, observation: jax.Array, action: jax.Array) -> jax.Array:
        """The value [critics, ...] of actions [..., action_size] at observations [..., size]."""
        return self.critics(jnp.concatenate([observation, action], axis=-1))[..., 0]
