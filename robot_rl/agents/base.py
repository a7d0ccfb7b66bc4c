"""What every agent is: a batch, acting, updating, and a state that continues bit for bit."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from robot_rl.agents.config import AgentConfig
from robot_rl.agents.parallel import Both, at_once, in_turn
from robot_rl.errors import InvalidInputError
from robot_rl.nets import MLP, FlatAdam, FlatParameters, GaussianPolicy, Normalizer

Metrics = dict[str, Tensor]


@dataclasses.dataclass(slots=True)
class Batch:
    """Transitions as float32 tensors on the agent's device.

    Attributes:
        observation: (B, o).
        goal: (B, g); g may be 0, for what is not goal-conditioned.
        action: (B, a), within [-1, 1].
        reward: (B,); for n steps, their discounted sum.
        next_observation: (B, o), n steps on.
        discount: (B,), gamma^n (1 - terminated).
        weight: (B,) weight of each sample in every loss, or None for one.
    """

    observation: Tensor
    goal: Tensor
    action: Tensor
    reward: Tensor
    next_observation: Tensor
    discount: Tensor
    weight: Tensor | None = None

    @classmethod
    def from_numpy(
        cls, arrays: Mapping[str, ArrayLike | None], device: torch.device | str = "cpu"
    ) -> Batch:
        """A batch from arrays named like the attributes; ``goal`` and ``weight`` may be missing.

        Contiguous writable float32 arrays are not copied on the CPU: the batch shares their memory.

        Raises:
            InvalidInputError: a name is missing or unknown.
        """
        required = {"observation", "action", "reward", "next_observation", "discount"}
        missing = sorted(name for name in required if arrays.get(name) is None)
        unknown = sorted(set(arrays) - required - {"goal", "weight"})
        if missing or unknown:
            raise InvalidInputError(
                f"batch lacks {', '.join(missing) or 'nothing'} and has unknown names"
                f" {', '.join(unknown) or 'none'}; it takes {', '.join(sorted(required))},"
                " and optionally goal, weight"
            )
        tensors = {k: _to_tensor(v, device) for k, v in arrays.items() if v is not None}
        if "goal" not in tensors:
            tensors["goal"] = tensors["observation"].new_zeros((len(tensors["observation"]), 0))
        return cls(**tensors)

    def check(self, observation_dim: int, goal_dim: int, action_dim: int) -> None:
        """Raises InvalidInputError, naming the field, unless every shape is as it should be."""
        size = self.reward.shape[0] if self.reward.dim() == 1 else -1
        if (
            size > 0
            and self.observation.shape == (size, observation_dim)
            and self.goal.shape == (size, goal_dim)
            and self.action.shape == (size, action_dim)
            and self.next_observation.shape == (size, observation_dim)
            and self.discount.shape == (size,)
            and (self.weight is None or self.weight.shape == (size,))
        ):
            return
        size = self.observation.shape[0] if self.observation.dim() else 0
        wanted = {
            "observation": (max(size, 1), observation_dim),
            "goal": (size, goal_dim),
            "action": (size, action_dim),
            "reward": (size,),
            "next_observation": (size, observation_dim),
            "discount": (size,),
            "weight": (size,),
        }
        for name, shape in wanted.items():
            tensor = getattr(self, name)
            if tensor is not None and tensor.shape != shape:
                raise InvalidInputError(
                    f"batch.{name} has shape {tuple(tensor.shape)}; it must be {shape}"
                )


def _to_tensor(values: ArrayLike, device: torch.device | str) -> Tensor:
    array = np.ascontiguousarray(values, dtype=np.float32)
    if not array.flags.writeable:
        array = array.copy()
    return torch.from_numpy(array).to(device, non_blocking=True)


class Agent(abc.ABC):
    """A policy and how it learns from batches.

    A subclass names its networks in `_extra_networks` and writes the gradients of its losses in
    `_compute_gradients`; building, acting, stepping and saving are here.

    Attributes:
        config: the options.
        observation_dim, goal_dim, action_dim: sizes o, g, a; goal_dim may be 0.
        device: where the networks live.
        updates: how many updates were made, over all sessions.
    """

    name: ClassVar[str]
    config: AgentConfig

    def __init__(
        self,
        *,
        observation_dim: int,
        goal_dim: int,
        action_dim: int,
        config: AgentConfig,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        for label, size, least in (
            ("observation_dim", observation_dim, 1),
            ("goal_dim", goal_dim, 0),
            ("action_dim", action_dim, 1),
        ):
            if not isinstance(size, int | np.integer) or size < least:
                raise InvalidInputError(
                    f"{label} is {size!r}; it must be an integer of at least {least}"
                )
        self.config = config
        self.observation_dim = int(observation_dim)
        self.goal_dim = int(goal_dim)
        self.action_dim = int(action_dim)
        self.device = torch.device(device)
        self.updates = 0

        self._observation_normalizer = Normalizer("observation", self.observation_dim, self.device)
        self._goal_normalizer = Normalizer("goal", self.goal_dim, self.device)
        self._normalizer_fitted = False
        # Both on the CPU, so that a state saved on one device continues on another; two, so that
        # how often the robot acts does not change what is learned from the same batches.
        self._act_generator = torch.Generator().manual_seed(seed)
        self._update_generator = torch.Generator().manual_seed(seed + 1)

        self.policy = self._make_policy()
        networks: list[MLP | GaussianPolicy] = [*self._extra_networks(), self.policy]
        shapes = {name: shape for net in networks for name, shape in net.shapes().items()}
        self._parameters = FlatParameters(shapes, self.device)
        init = torch.Generator().manual_seed(seed)
        for net in networks:
            net.bind(self._parameters)
            net.initialise(init)
        self._spans = [self._parameters.span(f"{net.name}.") for net in networks]
        self._policy_span = self._spans[-1]
        self._optimizer = FlatAdam(self._parameters.data, config.learning_rate)
        self._targets = self._build_targets()

        self._actor = self.policy
        self._actor_normalizers = (self._observation_normalizer, self._goal_normalizer)
        self._actor_parameters: FlatParameters | None = None
        self._actor_stale = False
        if self.device.type != "cpu":
            self._make_cpu_actor()
        self._gradients: Callable[[Batch, Tensor | None], Metrics] = self._compute_gradients
        self._compiled = config.compile == "on" or (
            config.compile == "auto" and self.device.type == "cuda"
        )
        if self._compiled:
            self._gradients = torch.compile(self._compute_gradients)
        self._both: Both = in_turn

    # ------------------------------------------------------------------ acting

    def act(
        self,
        observation: NDArray[np.floating],
        goal: NDArray[np.floating] | None = None,
        *,
        deterministic: bool = False,
    ) -> NDArray[np.float32]:
        """Actions for one observation or for many.

        Args:
            observation: (o,) or (N, o), in the units of the data.
            goal: (g,) or (N, g); may be None if goal_dim is 0.
            deterministic: the policy's mean; otherwise a sample from the agent's own generator.

        Returns:
            (a,) or (N, a), within [-1, 1].

        Raises:
            InvalidInputError: a wrong shape, or a value that is not finite.
        """
        single, state = self._act_input(observation, goal)
        with torch.inference_mode():
            if deterministic:
                action, _ = self._fresh_actor().forward(state)
            else:
                noise = torch.randn(
                    (state.shape[0], self.action_dim), generator=self._act_generator
                )
                action = self._fresh_actor().sample(state, noise)
            result: NDArray[np.float32] = action.numpy()
        return result[0] if single else result

    # ---------------------------------------------------------------- learning

    def update(self, batch: Batch) -> Metrics:
        """One gradient step on every loss; returns detached 0-d tensors, without a device sync.

        Raises:
            InvalidInputError: a field of the batch has the wrong shape.
        """
        batch.check(self.observation_dim, self.goal_dim, self.action_dim)
        with torch.inference_mode():
            metrics = self._gradients(batch, self._draw_noise(batch.reward.shape[0]))
            self._step()
        self.updates += 1
        self._actor_stale = True
        return metrics

    def set_workers(self, workers: int) -> None:
        """How many cores an update may use, 1 (at first) or 2.

        With two, independent networks are computed at once, each with one torch thread, to the same
        bits as with one worker and one torch thread; the caller's `torch.set_num_threads` stays.
        It gains nothing for bc, which has one network; on a GPU or compiled, `workers` stays 1.

        Raises:
            InvalidInputError: neither 1 nor 2.
        """
        if workers not in (1, 2):
            raise InvalidInputError(f"workers is {workers!r}; it must be 1 or 2")
        usable = self.device.type == "cpu" and not self._compiled
        self._both = at_once if workers == 2 and usable else in_turn

    @property
    def workers(self) -> int:
        """How many cores an update uses, 1 or 2."""
        return 2 if self._both is at_once else 1

    def fit_normalizer(self, observations: ArrayLike, goals: ArrayLike | None = None) -> None:
        """Fits the input normalisation on data, once; nothing if the config does not want it.

        Args:
            observations: (N, o).
            goals: (M, g); not needed if goal_dim is 0.

        Raises:
            InvalidInputError: a wrong shape, a value that is not finite, or already fitted.
        """
        if not self.config.normalize_observations:
            return
        if self._normalizer_fitted:
            raise InvalidInputError(
                "the normaliser is fitted already; what was learned depends on it, so it stays"
            )
        if self.goal_dim and goals is None:
            raise InvalidInputError(
                f"goals for the normaliser are missing; they must be (M, {self.goal_dim})"
            )
        self._observation_normalizer.fit(observations)
        if self.goal_dim and goals is not None:
            self._goal_normalizer.fit(goals)
        self._normalizer_fitted = True
        self._actor_stale = True

    @property
    def normalizer_fitted(self) -> bool:
        """Whether `fit_normalizer` was called, in this session or in the one that was loaded."""
        return self._normalizer_fitted

    # ------------------------------------------------------------------ saving

    def state_dict(self) -> dict[str, Tensor]:
        """Everything needed to continue bit for bit, as copies on the CPU."""
        state = {name: tensor.detach().cpu().clone() for name, tensor in self._tensors().items()}
        state["updates"] = torch.tensor(self.updates, dtype=torch.int64)
        state["normalizer.fitted"] = torch.tensor(int(self._normalizer_fitted), dtype=torch.int64)
        state["generator.act"] = self._act_generator.get_state()
        state["generator.update"] = self._update_generator.get_state()
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state_dict` returned; changes nothing if anything does not fit.

        Raises:
            InvalidInputError: a key is missing or unknown, or has the wrong shape or type.
        """
        live = self._tensors()
        wanted = self.state_dict()
        missing = [key for key in wanted if key not in state]
        unknown = [key for key in state if key not in wanted]
        if missing or unknown:
            raise InvalidInputError(
                f"state for a {self.name!r} agent lacks {', '.join(missing) or 'nothing'}"
                f" and has unknown keys {', '.join(unknown) or 'none'}"
            )
        for key, tensor in wanted.items():
            given = state[key]
            if given.shape != tensor.shape or given.dtype != tensor.dtype:
                raise InvalidInputError(
                    f"state {key!r} is {tuple(given.shape)} {given.dtype};"
                    f" it must be {tuple(tensor.shape)} {tensor.dtype}"
                )
        for key, tensor in live.items():
            tensor.copy_(state[key])
        self.updates = int(state["updates"])
        self._normalizer_fitted = bool(state["normalizer.fitted"])
        self._act_generator.set_state(state["generator.act"].cpu())
        self._update_generator.set_state(state["generator.update"].cpu())
        self._observation_normalizer.refresh()
        self._goal_normalizer.refresh()
        self._actor_stale = True

    # ----------------------------------------------------------- for subclasses

    def _extra_networks(self) -> Sequence[MLP]:
        """Creates the trained networks beside the policy."""
        return ()

    def _build_targets(self) -> FlatParameters | None:
        """Creates the target networks, equal to those they follow."""
        return None

    def _draw_noise(self, size: int) -> Tensor | None:
        """The random numbers of one update on ``size`` samples, if it needs any."""
        return None

    @abc.abstractmethod
    def _compute_gradients(self, batch: Batch, noise: Tensor | None) -> Metrics:
        """Writes the gradient of every loss at the current parameters; returns metrics."""

    def _update_targets(self) -> None:
        """Moves the target networks, if there are any, towards those they follow."""
        return

    def _state(self, observation: Tensor, goal: Tensor) -> Tensor:
        """The networks' input: normalised observation and goal, (B, o + g)."""
        state = self._observation_normalizer(observation)
        if self.goal_dim:
            state = torch.cat([state, self._goal_normalizer(goal)], 1)
        return state

    @property
    def _state_dim(self) -> int:
        return self.observation_dim + self.goal_dim

    def _to_device(self, array: ArrayLike) -> Tensor:
        return _to_tensor(array, self.device)

    # ----------------------------------------------------------------- private

    def _step(self) -> None:
        gradient = self._parameters.grad
        if self.config.policy_weight_decay > 0.0:
            span = self._policy_span
            gradient[span].add_(self._parameters.data[span], alpha=self.config.policy_weight_decay)
        if self.config.grad_clip is not None:
            for span in self._spans:
                part = gradient[span]
                part.mul_((self.config.grad_clip / (part.norm() + 1e-6)).clamp_max_(1.0))
        self._optimizer.step(gradient)
        self._update_targets()

    def _tensors(self) -> dict[str, Tensor]:
        """The live tensors that make up the state, by name."""
        tensors: dict[str, Tensor] = {}
        for name in self._parameters:
            tensors[name] = self._parameters.view(name)
        for name in self._parameters:
            moments = (self._optimizer.exp_avg, self._optimizer.exp_avg_sq)
            for label, moment in zip(("exp_avg", "exp_avg_sq"), moments, strict=True):
                tensors[f"optimizer.{label}.{name}"] = self._parameters.view_of(moment, name)
        tensors["optimizer.step"] = self._optimizer.step_count
        if self._targets is not None:
            for name in self._targets:
                tensors[f"target.{name}"] = self._targets.view(name)
        for normalizer in (self._observation_normalizer, self._goal_normalizer):
            tensors[f"normalizer.{normalizer.name}.mean"] = normalizer.mean
            tensors[f"normalizer.{normalizer.name}.std"] = normalizer.std
        return tensors

    def _make_policy(self) -> GaussianPolicy:
        config = self.config
        return GaussianPolicy(
            "policy",
            self._state_dim,
            config.hidden_dims,
            self.action_dim,
            std_kind=config.policy_std,
            std=config.std,
            log_std_range=(config.log_std_min, config.log_std_max),
            layer_norm=config.layer_norm,
        )

    def _make_cpu_actor(self) -> None:
        """A copy of the policy on the CPU: for one observation, faster than the way to a GPU."""
        cpu = torch.device("cpu")
        self._actor = self._make_policy()
        self._actor_parameters = FlatParameters(self._actor.shapes(), cpu, trainable=False)
        self._actor.bind(self._actor_parameters)
        self._actor_normalizers = (
            Normalizer("observation", self.observation_dim, cpu),
            Normalizer("goal", self.goal_dim, cpu),
        )
        self._actor_stale = True

    def _fresh_actor(self) -> GaussianPolicy:
        if self._actor_parameters is not None and self._actor_stale:
            self._actor_parameters.data.copy_(self._parameters.data[self._policy_span])
            self._actor_normalizers[0].copy_from(self._observation_normalizer)
            self._actor_normalizers[1].copy_from(self._goal_normalizer)
        self._actor_stale = False
        return self._actor

    def _act_input(
        self, observation: NDArray[np.floating], goal: NDArray[np.floating] | None
    ) -> tuple[bool, Tensor]:
        # Copies: torch would warn about arrays that cannot be written to.
        observation = np.array(observation, dtype=np.float32)
        single = observation.ndim == 1
        goal_given = np.zeros((*observation.shape[:-1], 0)) if goal is None else goal
        goal = np.array(goal_given, dtype=np.float32)
        for label, array, size in (
            ("observation", observation, self.observation_dim),
            ("goal", goal, self.goal_dim),
        ):
            if array.ndim not in (1, 2) or array.shape[-1] != size:
                raise InvalidInputError(
                    f"{label} has shape {array.shape}; it must be ({size},) or (N, {size})"
                )
            if not np.isfinite(array).all():
                raise InvalidInputError(f"{label} holds values that are not finite: {array}")
        if observation.shape[:-1] != goal.shape[:-1]:
            raise InvalidInputError(
                f"goal has shape {goal.shape}, observation {observation.shape};"
                " both must be for one sample, or both for the same N"
            )
        self._fresh_actor()
        parts = []
        for array, normalizer in zip((observation, goal), self._actor_normalizers, strict=True):
            parts.append(normalizer(torch.from_numpy(np.atleast_2d(array))))
        return single, torch.cat(parts, 1)
