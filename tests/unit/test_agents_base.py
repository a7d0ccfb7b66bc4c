"""Agents: acting, updating, saving, and learning what cloning cannot."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from robot_rl.agents import AGENTS, Agent, Batch, config_class, make_agent
from robot_rl.agents.awac import AWAC
from robot_rl.agents.iql import IQL
from robot_rl.errors import InvalidInputError

NAMES = sorted(AGENTS)
OBS, GOAL, ACT = 5, 2, 3


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(name: str, *, goal_dim: int = GOAL, seed: int = 0, **config: Any) -> Agent:
    config = {"hidden_dims": (32, 32), **config}
    return make_agent(
        name, observation_dim=OBS, goal_dim=goal_dim, action_dim=ACT, config=config, seed=seed
    )


def make_batch(size: int = 64, seed: int = 0, *, weighted: bool = False) -> Batch:
    rng = np.random.default_rng(seed)
    arrays = {
        "observation": rng.normal(size=(size, OBS)),
        "goal": rng.normal(size=(size, GOAL)),
        "action": rng.uniform(-1.0, 1.0, (size, ACT)),
        "reward": rng.normal(size=size),
        "next_observation": rng.normal(size=(size, OBS)),
        "discount": 0.98 * (rng.uniform(size=size) > 0.1),
    }
    if weighted:
        arrays["weight"] = rng.uniform(0.5, 2.0, size)
    return Batch.from_numpy(arrays)


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


# ------------------------------------------------------------------ batches


def test_batch_shares_float32_memory_and_fills_in_the_goal() -> None:
    observation = np.zeros((4, OBS), np.float32)
    vector = np.zeros(4, np.float32)
    batch = Batch.from_numpy(
        {
            "observation": observation,
            "action": np.zeros((4, ACT)),
            "reward": vector,
            "next_observation": observation,
            "discount": vector,
        }
    )
    observation[1, 2] = 7.0
    assert batch.observation[1, 2] == 7.0
    assert batch.goal.shape == (4, 0)
    assert batch.action.dtype == torch.float32
    assert batch.weight is None


def test_batch_names_what_is_missing_and_unknown() -> None:
    with pytest.raises(InvalidInputError, match=r"lacks action, discount.*unknown names rewards"):
        Batch.from_numpy({"observation": np.zeros((1, OBS)), "rewards": np.zeros(1)})


@pytest.mark.parametrize(
    ("field", "shape"),
    [
        ("observation", (64, OBS + 1)),
        ("goal", (64, 0)),
        ("action", (63, ACT)),
        ("reward", (64, 1)),
        ("next_observation", (OBS,)),
        ("discount", ()),
        ("weight", (1,)),
    ],
)
def test_update_names_the_field_of_wrong_shape(field: str, shape: tuple[int, ...]) -> None:
    batch = dataclasses.replace(make_batch(), **{field: torch.zeros(shape)})
    with pytest.raises(InvalidInputError, match=rf"batch\.{field} has shape .*it must be"):
        make("iql").update(batch)


# ------------------------------------------------------------------- acting


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("goal_dim", [0, GOAL])
def test_one_and_many_act_alike_within_limits(name: str, goal_dim: int) -> None:
    agent = make(name, goal_dim=goal_dim, policy_std="fixed", std=2.0)
    rng = np.random.default_rng(0)
    observation = rng.normal(size=(50, OBS)) * 5.0
    goal = rng.normal(size=(50, goal_dim))
    many = agent.act(observation, goal, deterministic=True)
    ones = [agent.act(o, g, deterministic=True) for o, g in zip(observation, goal, strict=True)]
    assert many.shape == (50, ACT) and many.dtype == np.float32
    np.testing.assert_allclose(many, np.stack(ones), atol=1e-6)
    sampled = agent.act(observation, goal)
    assert np.abs(sampled).max() == 1.0
    assert np.abs(sampled - many).max() > 0.5


def test_act_does_not_change_its_input_and_takes_read_only_arrays() -> None:
    observation = np.ones(OBS, np.float32)
    observation.flags.writeable = False
    make("bc", goal_dim=0).act(observation)
    assert (observation == 1.0).all()


@pytest.mark.parametrize(
    ("observation", "goal", "message"),
    [
        (
            np.zeros(OBS + 1),
            np.zeros(GOAL),
            rf"observation has shape \({OBS + 1},\); it must be \({OBS},\)",
        ),
        (np.zeros(OBS), None, r"goal has shape \(0,\); it must be"),
        (np.zeros((4, OBS)), np.zeros((3, GOAL)), "both for the same N"),
        (np.zeros((2, 2, OBS)), np.zeros((2, 2, GOAL)), "observation has shape"),
        (np.full(OBS, np.inf), np.zeros(GOAL), "observation holds values that are not finite"),
        (np.zeros(OBS), np.full(GOAL, np.nan), "goal holds values that are not finite"),
    ],
)
def test_act_refuses(
    observation: NDArray[np.float64], goal: NDArray[np.float64] | None, message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        make("bc").act(observation, goal)


def test_the_copy_that_acts_for_a_gpu_follows_the_learner() -> None:
    """On a GPU a copy on the CPU acts; here both are on the CPU, and must stay equal."""
    direct, copied = make("iql"), make("iql")
    copied._make_cpu_actor()
    rng = np.random.default_rng(0)
    observations, goals = rng.normal(size=(30, OBS)), rng.normal(size=(30, GOAL))
    for agent in (direct, copied):
        agent.fit_normalizer(observations, goals)
    for step in range(3):
        for agent in (direct, copied):
            agent.update(make_batch(seed=step))
        assert (direct.act(observations, goals) == copied.act(observations, goals)).all()
    copied.load_state_dict(make("iql", seed=5).state_dict())
    direct.load_state_dict(make("iql", seed=5).state_dict())
    assert (direct.act(observations, goals) == copied.act(observations, goals)).all()


def test_acting_is_quick() -> None:
    agent = make_agent("iql", observation_dim=17, goal_dim=3, action_dim=6)
    observation, goal = np.zeros(17), np.zeros(3)
    times = []
    for _ in range(200):
        start = time.perf_counter()
        agent.act(observation, goal)
        times.append(time.perf_counter() - start)
    assert min(times) < 200e-6


def test_samples_follow_mean_and_std() -> None:
    agent = make("bc", policy_std="fixed", std=0.2)
    observation, goal = np.zeros((20000, OBS)), np.zeros((20000, GOAL))
    actions = agent.act(observation, goal)
    mean = agent.act(observation[0], goal[0], deterministic=True)
    np.testing.assert_allclose(actions.mean(0), mean, atol=0.01)
    np.testing.assert_allclose(actions.std(0), 0.2, atol=0.01)


# ----------------------------------------------------------------- updating


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_bits_other_seed_others(name: str) -> None:
    agents = [make(name, seed=3), make(name, seed=3), make(name, seed=4)]
    for step in range(5):
        for agent in agents:
            agent.update(make_batch(seed=step))
    assert_same(agents[0].state_dict(), agents[1].state_dict())
    actions = [agent.act(np.zeros(OBS), np.zeros(GOAL)) for agent in agents]
    assert (actions[0] == actions[1]).all()
    assert (actions[0] != actions[2]).any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("policy_std", ["fixed", "learned", "state"])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_every_part_moves_and_stays_finite(name: str, policy_std: str, layer_norm: bool) -> None:
    agent = make(
        name,
        policy_std=policy_std,
        layer_norm=layer_norm,
        grad_clip=1.0,
        policy_weight_decay=1e-3,
        std=0.3,
    )
    before = agent.state_dict()
    for step in range(3):
        metrics = agent.update(make_batch(seed=step, weighted=True))
    assert all(value.dim() == 0 and torch.isfinite(value) for value in metrics.values())
    after = agent.state_dict()
    same = [k for k in after if k.split(".")[0] != "normalizer" and after[k].equal(before[k])]
    wanted = ["generator.act"] if name == "awac" else ["generator.act", "generator.update"]
    assert sorted(same) == wanted
    assert agent.updates == 3


def network_change(agent: Agent, batch: Batch) -> set[str]:
    """The networks whose gradients are not zero on ``batch``."""
    agent.update(batch)
    moments = {k: v for k, v in agent.state_dict().items() if k.startswith("optimizer.exp_avg.")}
    return {key.split(".")[2] for key, value in moments.items() if value.any()}


def test_the_policy_does_not_touch_the_critics_nor_they_each_other() -> None:
    """With each loss made flat in turn, its network and no other stops moving."""
    batch = make_batch()

    class NoPolicyLoss(IQL):
        def policy_loss(self, mean: Any, log_std: Any, batch: Any, advantage: Any) -> Any:
            loss = super().policy_loss(mean, log_std, batch, advantage)
            return loss._replace(
                mean_gradient=0.0 * loss.mean_gradient, log_std_gradient=0.0 * loss.log_std_gradient
            )

    class NoValueLoss(IQL):
        def value_loss(self, value: Any, target_q: Any, weight: Any) -> Any:
            loss = super().value_loss(value, target_q, weight)
            return loss._replace(gradient=0.0 * loss.gradient)

    everything = {"value", "critic1", "critic2", "policy"}
    sizes: dict[str, Any] = {"observation_dim": OBS, "goal_dim": GOAL, "action_dim": ACT}
    config = config_class("iql")(hidden_dims=(16,))
    assert network_change(IQL(config=config, **sizes), batch) == everything
    assert network_change(NoPolicyLoss(config=config, **sizes), batch) == everything - {"policy"}
    assert network_change(NoValueLoss(config=config, **sizes), batch) == everything - {"value"}


@pytest.mark.parametrize("name", ["iql", "awac"])
def test_whole_update_equals_autograd(name: str) -> None:
    """All gradients at once, against the losses written with autograd from the state alone."""
    agent = make(name, policy_std="learned")
    for step in range(3):
        agent.update(make_batch(seed=step))
    state = agent.state_dict()
    values = {k: v.clone().requires_grad_() for k, v in state.items() if v.is_floating_point()}
    batch = make_batch(seed=9)
    noise = torch.randn(
        (2, 64, ACT), generator=torch.Generator().set_state(state["generator.update"])
    )

    def net(prefix: str, *inputs: torch.Tensor) -> torch.Tensor:
        x = torch.cat(inputs, 1)
        for layer in range(3):
            x = x @ values[f"{prefix}.{layer}.weight"] + values[f"{prefix}.{layer}.bias"]
            x = torch.relu(x) if layer < 2 else x
        return x

    def smaller(prefix: str, *inputs: torch.Tensor) -> torch.Tensor:
        both = [net(f"{prefix}critic{i}", *inputs)[:, 0] for i in (1, 2)]
        return torch.minimum(*both)

    s, s2, a, g = batch.observation, batch.next_observation, batch.action, batch.goal
    config = agent.config
    low, high = config.log_std_min, config.log_std_max
    log_std = low + (high - low) * torch.sigmoid(values["policy.log_std"])
    policy = torch.distributions.Normal(torch.tanh(net("policy", s, g)), log_std.exp())
    if name == "iql":
        target_q = smaller("target.", s, g, a).detach()
        value = net("value", s, g)[:, 0]
        u = target_q - value
        total = (torch.where(u < 0.0, 1.0 - config.expectile, config.expectile) * u**2).mean()
        next_value = net("value", s2, g)[:, 0]
        weight = torch.exp(config.inverse_temperature * u).clamp(max=100.0)
    else:
        total = torch.zeros(())
        next_mean = torch.tanh(net("policy", s2, g))
        next_action = (next_mean + log_std.exp() * noise[0]).clamp(-1.0, 1.0)
        next_value = smaller("target.", s2, g, next_action)
        sampled = (policy.mean + policy.stddev * noise[1]).clamp(-1.0, 1.0)
        advantage = smaller("", s, g, a) - smaller("", s, g, sampled)
        weight = torch.softmax(advantage, 0) * 64
    target = (batch.reward + batch.discount * next_value).detach()
    for i in (1, 2):
        total = total + ((net(f"critic{i}", s, g, a)[:, 0] - target) ** 2).mean()
    total = total - (weight.detach() * policy.log_prob(a).sum(1)).mean()
    total.backward()

    agent.update(batch)
    after = agent.state_dict()
    names = [k.removeprefix("optimizer.exp_avg.") for k in state if ".exp_avg." in k]
    for key in names:
        moment = f"optimizer.exp_avg.{key}"
        gradient = 10.0 * (after[moment] - 0.9 * state[moment])
        if name == "awac" and key.startswith("policy"):
            gradient -= config.policy_weight_decay * state[key]
        torch.testing.assert_close(gradient, values[key].grad, atol=2e-4, rtol=1e-3, msg=key)
    for key in (k for k in state if k.startswith("target.")):
        moved = torch.lerp(state[key], after[key.removeprefix("target.")], config.tau)
        torch.testing.assert_close(after[key], moved, msg=key)


def test_value_clip_bounds_the_targets() -> None:
    agent = make("iql", value_clip=[-1.0, 0.0], hidden_dims=(16,))
    batch = dataclasses.replace(make_batch(), reward=torch.full((64,), -50.0))
    assert agent.update(batch)["target"].item() == -1.0


def test_compiled_update_equals_eager() -> None:
    pytest.importorskip("torch._inductor")
    eager, compiled = make("iql", hidden_dims=(16,)), make("iql", hidden_dims=(16,), compile="on")
    # The eager backend traces the update without needing a C++ compiler.
    compiled._gradients = torch.compile(compiled._compute_gradients, backend="eager")
    for step in range(3):
        eager.update(make_batch(seed=step))
        compiled.update(make_batch(seed=step))
    for key, value in eager.state_dict().items():
        torch.testing.assert_close(value, compiled.state_dict()[key], atol=1e-5, rtol=1e-4)


# ------------------------------------------------------------------- saving


@pytest.mark.parametrize("name", NAMES)
def test_loading_continues_bit_for_bit(name: str) -> None:
    rng = np.random.default_rng(0)
    first = make(name)
    first.fit_normalizer(rng.normal(2.0, 3.0, (100, OBS)), rng.normal(size=(100, GOAL)))
    for step in range(4):
        first.update(make_batch(seed=step))
        first.act(np.zeros(OBS), np.zeros(GOAL))
    second = make(name, seed=99)
    second.load_state_dict(first.state_dict())
    assert second.updates == 4 and second.normalizer_fitted
    for step in range(4, 8):
        first.update(make_batch(seed=step))
        second.update(make_batch(seed=step))
        assert (
            first.act(np.ones(OBS), np.ones(GOAL)) == second.act(np.ones(OBS), np.ones(GOAL))
        ).all()
    assert_same(first.state_dict(), second.state_dict())


def test_state_is_a_copy() -> None:
    agent = make("iql")
    state = agent.state_dict()
    kept = {key: value.clone() for key, value in state.items()}
    agent.update(make_batch())
    assert_same(state, kept)


def test_loading_names_what_does_not_fit_and_changes_nothing() -> None:
    agent = make("iql")
    before = agent.state_dict()
    state = make("iql", seed=1).state_dict()
    del state["policy.log_std"]
    with pytest.raises(InvalidInputError, match=r"lacks policy\.log_std and has unknown keys none"):
        agent.load_state_dict(state)
    with pytest.raises(InvalidInputError, match=r"'value\.0\.weight' is \(7, 16\).*be \(7, 32\)"):
        agent.load_state_dict(make("iql", hidden_dims=(16, 32)).state_dict())
    with pytest.raises(InvalidInputError, match="a 'bc' agent lacks nothing and has unknown keys"):
        make("bc").load_state_dict(before)
    wrong = before | {"updates": torch.tensor(1.0)}
    with pytest.raises(InvalidInputError, match=r"'updates' is \(\) torch.float32; it must be"):
        agent.load_state_dict(wrong)
    assert_same(before, agent.state_dict())


# ------------------------------------------------------------- normalisation


def test_normalisation_makes_units_irrelevant() -> None:
    rng = np.random.default_rng(0)
    observations, goals = rng.normal(size=(500, OBS)), rng.normal(size=(500, GOAL))
    metres, millimetres = make("bc"), make("bc")
    metres.fit_normalizer(observations, goals)
    millimetres.fit_normalizer(1000.0 * observations + 50.0, 1000.0 * goals)
    first = metres.act(observations[0], goals[0], deterministic=True)
    second = millimetres.act(1000.0 * observations[0] + 50.0, 1000.0 * goals[0], deterministic=True)
    np.testing.assert_allclose(first, second, atol=1e-4)
    with pytest.raises(InvalidInputError, match="fitted already"):
        metres.fit_normalizer(observations, goals)


def test_normalisation_can_be_off() -> None:
    agent = make("bc", normalize_observations=False)
    before = agent.act(np.ones(OBS), np.ones(GOAL), deterministic=True)
    agent.fit_normalizer(np.full((10, OBS), 9.0), np.full((10, GOAL), 9.0))
    assert (agent.act(np.ones(OBS), np.ones(GOAL), deterministic=True) == before).all()
    assert not agent.normalizer_fitted


# --------------------------------------------------------------- the registry


def test_registry_lists_valid_names() -> None:
    with pytest.raises(InvalidInputError, match=r"unknown agent 'iqk'.*bc, iql, awac"):
        make("iqk")
    with pytest.raises(InvalidInputError, match=r"unknown iql option 'expctile'.*expectile"):
        make("iql", expctile=0.5)
    with pytest.raises(InvalidInputError, match="is a BCConfig; it must be a IQLConfig"):
        make_agent("iql", observation_dim=1, goal_dim=0, action_dim=1, config=config_class("bc")())
    with pytest.raises(InvalidInputError, match="action_dim is 0; it must be an integer"):
        make_agent("iql", observation_dim=1, goal_dim=0, action_dim=0)


@pytest.mark.parametrize("name", NAMES)
def test_every_option_has_help(name: str) -> None:
    for field in dataclasses.fields(config_class(name)):
        assert field.metadata["help"], field.name


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bc", {"hidden_dims": (0,)}, r"hidden_dims is \(0,\)"),
        ("bc", {"learning_rate": 0.0}, r"learning_rate is 0.0; it must be a number in \(0, 1\]"),
        ("bc", {"discount": 1.0}, r"discount is 1.0; it must be a number in \[0, 1\)"),
        ("bc", {"batch_size": 2.5}, r"batch_size is 2.5; it must be an integer in \[1, inf\]"),
        ("bc", {"policy_std": "big"}, "unknown policy_std 'big'.*fixed, learned, state"),
        ("bc", {"std": 5.0}, "std is 5.0; it must be"),
        ("bc", {"layer_norm": 1}, "layer_norm is 1; it must be True or False"),
        ("bc", {"loss": "l1"}, "unknown loss 'l1'.*nll, mse"),
        ("iql", {"expectile": 1.0}, r"expectile is 1.0; it must be a number in \(0, 1\)"),
        ("iql", {"value_clip": (0.0, -1.0)}, "value_clip is .*low < high"),
        ("iql", {"tau": "fast"}, "tau is 'fast'"),
        ("awac", {"temperature": -1.0}, "temperature is -1.0"),
        ("awac", {"weights": "linear"}, "unknown weights 'linear'.*softmax, exp"),
        ("awac", {"grad_clip": 0.0}, "grad_clip is 0.0"),
    ],
)
def test_options_out_of_range_are_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        make(name, **options)


# ------------------------------------------------------------------- learning

STEP, REACHED, HORIZON = 0.2, 0.15, 20


def reach_data(size: int, seed: int) -> dict[str, NDArray[np.float32]]:
    """ACT point on a line walks by STEP times its action to a goal; the data walks at random.

    Reward -1 until the goal is reached, and then the episode ends.
    """
    rng = np.random.default_rng(seed)
    x, goal = rng.uniform(-1.0, 1.0, (size, 1)), rng.uniform(-1.0, 1.0, (size, 1))
    action = rng.uniform(-1.0, 1.0, (size, 1))
    after = np.clip(x + STEP * action, -1.5, 1.5)
    done = np.abs(after - goal)[:, 0] < REACHED
    return {
        "observation": x.astype(np.float32),
        "goal": goal.astype(np.float32),
        "action": action.astype(np.float32),
        "reward": np.where(done, 0.0, -1.0).astype(np.float32),
        "next_observation": after.astype(np.float32),
        "discount": np.where(done, 0.0, 0.9).astype(np.float32),
    }


def steps_to_goal(agent: Agent) -> float:
    """Mean number of steps over 200 episodes; HORIZON for those that never arrive."""
    rng = np.random.default_rng(7)
    x, goal = rng.uniform(-1.0, 1.0, (200, 1)), rng.uniform(-1.0, 1.0, (200, 1))
    steps = np.zeros(200)
    arrived = np.zeros(200, bool)
    for _ in range(HORIZON):
        steps += ~arrived
        x = np.clip(x + STEP * agent.act(x, goal, deterministic=True), -1.5, 1.5)
        arrived |= np.abs(x - goal)[:, 0] < REACHED
    return float(steps.mean())


def train_reach(name: str, **config: Any) -> float:
    options = {"hidden_dims": (64, 64), "learning_rate": 1e-3, **config}
    agent = make_agent(name, observation_dim=1, goal_dim=1, action_dim=1, config=options)
    data = reach_data(20000, seed=0)
    agent.fit_normalizer(data["observation"], data["goal"])
    rng = np.random.default_rng(1)
    for _ in range(1500):
        rows = rng.integers(0, 20000, 256)
        agent.update(Batch.from_numpy({key: value[rows] for key, value in data.items()}))
    return steps_to_goal(agent)


def test_iql_and_awac_reach_goals_that_cloning_random_walks_does_not() -> None:
    clip = (-10.0, 0.0)
    cloned = train_reach("bc")
    iql = train_reach("iql", expectile=0.9, inverse_temperature=10.0, tau=0.02, value_clip=clip)
    awac = train_reach("awac", temperature=0.3, tau=0.02, value_clip=clip)
    # The shortest way takes 3.2 steps on average; standing still, 16.
    assert cloned > 10.0
    assert iql < 5.0
    assert awac < 5.0


def test_bc_learns_the_mapping_and_its_spread() -> None:
    rng = np.random.default_rng(0)
    agent = make_agent(
        "bc",
        observation_dim=1,
        goal_dim=0,
        action_dim=1,
        config={"hidden_dims": (64,), "learning_rate": 3e-3},
    )
    for _ in range(600):
        x = rng.uniform(-1.0, 1.0, (256, 1))
        action = 0.6 * np.sin(3.0 * x) + 0.1 * rng.normal(size=x.shape)
        zeros = np.zeros(256)
        agent.update(
            Batch.from_numpy(
                {
                    "observation": x,
                    "action": action,
                    "reward": zeros,
                    "next_observation": x,
                    "discount": zeros,
                }
            )
        )
    x = np.linspace(-0.9, 0.9, 50)[:, None]
    error = agent.act(x, deterministic=True) - 0.6 * np.sin(3.0 * x)
    assert np.abs(error).max() < 0.08
    samples = agent.act(np.zeros((5000, 1)))
    assert samples.std() == pytest.approx(0.1, abs=0.02)


def test_iql_value_is_between_the_bounds_of_the_task() -> None:
    agent = make_agent("iql", observation_dim=OBS, goal_dim=GOAL, action_dim=ACT)
    assert isinstance(agent, IQL)
    values = agent.value(np.zeros((4, OBS)), np.zeros((4, GOAL)))
    assert values.shape == (4,) and values.dtype == np.float32
    assert not hasattr(AWAC, "value")
