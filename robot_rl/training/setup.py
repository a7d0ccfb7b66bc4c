"""From names to environments, replay buffers and agents: what both kinds of training share."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import gymnasium

from robot_rl.agents import make_agent
from robot_rl.agents.base import Agent
from robot_rl.data import DatasetInfo, Relabelling
from robot_rl.envs.external import is_external, make_external
from robot_rl.envs.factory import make_env
from robot_rl.envs.resets import ArmResetter, LearnedResetter
from robot_rl.envs.tasks import TASKS, make_task
from robot_rl.errors import InvalidInputError
from robot_rl.training.evaluate import unwrap
from robot_rl.training.runs import read_config

C = TypeVar("C")
RIG_HELP = (
    "how the arm is reached, repeatable: master_uri=http://sawyer.local:11311, "
    "robot_ip=172.16.0.2, namespace=right, ...; a backend refuses keys it does not know"
)
CAMERA_HELP = (
    "a camera and where its images come from, repeatable: front=opencv:0, "
    "wrist=realsense:SERIAL, side=ros1:/camera/image_raw, top=ros2:/camera/image_raw"
)
RESETS = ("auto", "scene", "arm")
RESETS_HELP = ("who brings things back between episodes: scene (the simulator), arm (the robot) or "
               "auto (the simulator where there is one)")
_KIND_NAMES = {"pretrain": "pretraining", "train": "training"}


@dataclass(frozen=True)
class EnvChoice:
    """Which environment."""

    task: str = field(
        default="", metadata={"help": "task: Reach, Push, PickPlace, Drawer, Door, "
                              "Insertion, or the gymnasium id of a task from elsewhere"}
    )
    robot: str = field(default="sawyer", metadata={"help": "arm: sawyer, panda or fr3"})
    backend: str = field(
        default="mujoco", metadata={"help": "engine mujoco or pybullet, or hardware: ros1 "
                                    "(Sawyer), ros2 or franky (Franka)"}
    )
    control_hz: float = field(default=10.0, metadata={"help": "actions per second, 5 to 20"})
    randomize: dict[str, float] = field(
        default_factory=dict,
        metadata={"help": "domain randomisation as name=amount, e.g. mass=0.3 friction=0.3 "
                  "color=0.1 camera_m=0.02 camera_rad=0.02 latency_s=0.05 action_noise=0.05 "
                  "action_bias=0.05"},
    )

    rig: dict[str, str] = field(
        default_factory=dict, metadata={"help": RIG_HELP, "metavar": "KEY=VALUE"}
    )
    camera: dict[str, str] = field(
        default_factory=dict, metadata={"help": CAMERA_HELP, "metavar": "NAME=SOURCE"}
    )
    success: str = field(
        default="", metadata={"help": "who says when the task is done, in place of the distance to "
                              "the goal, e.g. sensor:contact>0.5"}
    )
    goal_image: str = field(
        default="", metadata={"help": "for images on hardware: a PNG, JPEG or .npy file that shows "
                              "the goal, or a folder of them (without: black, and said so in the "
                              "recording)"}
    )

    def make(
        self, *, render_mode: str | None = None, obs: str = "state", resets: str = "auto"
    ) -> gymnasium.Env[Any, Any]:
        """The environment; ``resets`` as in :func:`robot_rl.envs.make_env`."""
        if is_external(self.task):
            if resets == "arm":
                raise InvalidInputError(f"the task {self.task} has no arm that could reset it")
            if self.randomize:
                raise InvalidInputError(f"the task {self.task} cannot be randomised from here")
            if self.rig or self.camera or self.success or self.goal_image:
                raise InvalidInputError(f"the task {self.task} has no rig: --rig, --camera, "
                                        "--success and --goal-image do not go with it")
            return make_external(self.task, render_mode=render_mode)
        return make_env(
            self.task,
            self.robot,
            self.backend,
            obs,
            control_hz=self.control_hz,
            randomization=self.randomize or None,
            render_mode=render_mode,
            resets=resets,
            success=self.success or None,
            goal_image=self.goal_image,
            **self._hardware(),
        )

    def _hardware(self) -> dict[str, Any]:
        """How the rig is reached, for :func:`robot_rl.envs.make_env`."""
        more: dict[str, Any] = {"rig_options": self.rig, "camera_sources": self.camera}
        seen = tuple(name for name, source in self.camera.items() if source != "none")
        return {**more, "cameras": seen} if seen else more

    def as_dict(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


def dataset_info(
    env: EnvChoice, world: gymnasium.Env[Any, Any], config: dict[str, Any]
) -> DatasetInfo:
    """What a recording of ``world``, made from ``env``, is of."""
    from robot_rl import __version__

    inner = unwrap(world)
    space = world.observation_space
    cameras: dict[str, tuple[int, int, int]] = {}
    if inner is not None and inner.obs_mode == "image":
        height, width = space["observation"].shape[:2]  # type: ignore[index]
        cameras = dict.fromkeys(inner.camera_names, (height, width, 3))
    return DatasetInfo(
        task=env.task,
        observation_shape=(inner.state_dim,) if inner is not None
        else tuple(space["observation"].shape),  # type: ignore[index]
        goal_dim=inner.goal_dim if inner is not None
        else int(space["desired_goal"].shape[0]),  # type: ignore[index]
        action_dim=int(world.action_space.shape[0]),  # type: ignore[index]
        env=env.as_dict(),
        config=config,
        robot=env.robot if inner is not None else "",
        rate_hz=env.control_hz if inner is not None else 0.0,
        cameras=cameras,
        software=f"robot_rl {__version__}",
    )


def learn_resets(world: gymnasium.Env[Any, Any], agent: Agent) -> None:
    """Let ``agent`` bring things back in ``world``, where the arm resets by a script so far."""
    inner = unwrap(world)
    assert inner is not None and isinstance(inner.resetter, ArmResetter)
    inner.resetter = LearnedResetter(inner, agent, inner.resetter)


def check_seed(seed: int) -> None:
    """Raise InvalidInputError unless every generator here takes ``seed``."""
    if not 0 <= seed < 2**31:
        raise InvalidInputError(f"seed is {seed}, should be in [0, {2**31})")


def check_least(config: object, **least: int) -> None:
    """Raise InvalidInputError unless each field of ``config`` that is named here is at least so
    much."""
    for name, bound in least.items():
        value = getattr(config, name)
        if not value >= bound:
            raise InvalidInputError(f"{name} is {value}, should be at least {bound}")


def own_task(task: str) -> str:
    """The name of a task that an environment can be made of, or "" for free text, as recorded data
    may say."""
    if is_external(task):
        return task
    return next((name for name in TASKS if name.lower() == task.lower()), "")


def canonical_task(task: str) -> str:
    """The task's name as it is written, e.g. ``push`` to ``Push``; external ids unchanged."""
    return task if is_external(task) else make_task(task).name


def default_relabelling(agent: str, goal_dim: int) -> Relabelling:
    """Goals as recorded for cloning; for the others a mixture that teaches reaching anything."""
    if agent == "bc" or goal_dim == 0:
        return Relabelling()
    return Relabelling(original=0.3, future=0.5, random=0.2)


def read_options(
    run_path: str | Path, kind: str, config_class: type[C], changes: dict[str, Any]
) -> tuple[C, EnvChoice, Relabelling]:
    """The options in the ``config.json`` of a run of ``kind``, to go on with.

    ``changes`` replace some; those that are None or 0 do not.

    Raises:
        InvalidInputError: it is a run of another kind, or damaged.
    """
    raw = read_config(run_path)
    if raw.get("kind") != kind:
        raise InvalidInputError(f"{run_path} is not a {_KIND_NAMES[kind]} run")
    try:
        given = {name: value for name, value in changes.items() if value}
        return (config_class(**{**raw[kind], **given}), EnvChoice(**raw["env"]),
                Relabelling(**raw["relabelling"]))
    except (KeyError, TypeError) as error:
        raise InvalidInputError(f"{run_path}: config.json is damaged ({error})") from None


def new_agent(
    name: str,
    *,
    sizes: tuple[int, int, int],
    overrides: dict[str, Any],
    seed: int,
    device: str,
) -> Agent:
    """An agent of (observation, goal, action) ``sizes``."""
    observation_dim, goal_dim, action_dim = sizes
    return make_agent(
        name,
        observation_dim=observation_dim,
        goal_dim=goal_dim,
        action_dim=action_dim,
        config=overrides,
        seed=seed,
        device=device,
    )
