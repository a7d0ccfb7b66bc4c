"""Recording demonstrations: an operator drives the arm, or takes over from a policy, and judges.

Accepted episodes make the dataset ``DIR``. Rejected and aborted ones are kept apart in
``DIR/rejected``, a dataset of its own whose episodes say why in their metadata; pretraining on
``DIR`` does not see them. Each is on the disk as soon as it is judged.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from robot_rl.data import RecordingOptions
from robot_rl.data.frames import CODECS
from robot_rl.envs.external import is_external
from robot_rl.envs.factory import make_env
from robot_rl.envs.robot_env import RobotEnv
from robot_rl.errors import (
    InvalidInputError,
    LateCommandError,
    MotionInterruptedError,
    SafetyError,
    StaleDataError,
    unknown_name,
)
from robot_rl.teleops import STOPPED, Operator
from robot_rl.training.collect import make_policy
from robot_rl.training.evaluate import Policy, training_seed
from robot_rl.training.runs import StopFlag, progress
from robot_rl.training.setup import EnvChoice, canonical_task, check_seed, dataset_info
from robot_rl.training.takes import Folders, Take

JUDGES = ("operator", "success")
ACCEPT, REJECT, ABORT, NOTHING = "accepted", "rejected", "aborted", "nothing"
VERDICTS = {"accept": ACCEPT, "reject": REJECT}
# How long a person may take for an episode, and how often is looked while nothing moves [s].
_PATIENCE_S = 60.0
_LOOK_S = 0.02
ARM_ERRORS = (SafetyError, StaleDataError, LateCommandError)


@dataclass(frozen=True)
class RecordConfig:
    """Options of recording demonstrations."""

    teleop: str = field(default="keyboard", metadata={"help": "what the operator drives with: "
                                                      "spacemouse, gamepad, keyboard or scripted "
                                                      "(the task's script with slips, which judges "
                                                      "by success)"})
    quality: float = field(default=0.7, metadata={"help": "quality of the scripted operator: 1 as "
                                                  "well as it can, 0 at random; what fails is "
                                                  "rejected"})
    episodes: int = field(default=10, metadata={"help": "demonstrations to accept; rejected ones "
                                                "do not count"})
    attempts: int = field(default=0, metadata={"help": "give up after so many episodes, accepted "
                                               "or not (0: five for each of --episodes)"})
    policy: str = field(default="", metadata={"help": "a policy that acts until the operator takes "
                                              "over: a run or checkpoint, or scripted"})
    policy_quality: float = field(default=0.5, metadata={"help": "quality of --policy scripted"})
    handback_s: float = field(default=1.0, metadata={"help": "how long after the operator let go "
                                                     "the policy acts again [s]"})
    judge: str = field(default="operator", metadata={"help": "who accepts: operator (asked at the "
                                                     "end), or success as it is detected"})
    label: str = field(default="", metadata={"help": "text kept with every episode, such as an "
                                             "instruction or the operator's name"})
    duration_s: float = field(default=0.0, metadata={"help": "longest episode [s] (0: the task's "
                                                     "own, but a minute for a person)"})
    seed: int = field(default=0, metadata={"help": "seed of goals, starts and slips"})
    obs: str = field(default="state", metadata={"help": "observations: state or image"})
    image_format: str = field(default="raw", metadata={"help": "how images are kept: raw and png "
                                                       "are exact, jpeg is smallest"})
    out: str = field(default="", metadata={"help": "folder of the recording, new or empty unless "
                                           "--append"})

    def __post_init__(self) -> None:
        for name, least, most in (("quality", 0.0, 1.0), ("policy_quality", 0.0, 1.0),
                                  ("episodes", 1, 10**6), ("attempts", 0, 10**7),
                                  ("handback_s", 0.0, 60.0), ("duration_s", 0.0, 3600.0)):
            value = getattr(self, name)
            if not least <= value <= most:
                raise InvalidInputError(f"{name} is {value}, should be in [{least:g}, {most:g}]")
        if 0 < self.attempts < self.episodes:
            raise InvalidInputError(f"attempts is {self.attempts}, should be at least episodes, "
                                    f"{self.episodes}")
        check_seed(self.seed)
        if self.image_format not in CODECS:
            raise unknown_name("image format", self.image_format, CODECS)
        if self.judge not in JUDGES:
            raise unknown_name("judge", self.judge, JUDGES)
        if self.obs not in ("state", "image"):
            raise unknown_name("obs", self.obs, ("state", "image"))

    @property
    def most_attempts(self) -> int:
        return self.attempts or 5 * self.episodes


@dataclass(frozen=True)
class Hardware:
    """How the rig is reached: the backend's options and the cameras' sources, by name."""

    rig: dict[str, str] = field(default_factory=dict)
    cameras: dict[str, str] = field(default_factory=dict)


@dataclass
class Tally:
    """What was recorded so far."""

    accepted: int = 0
    rejected: int = 0
    aborted: int = 0
    attempts: int = 0
    steps: int = 0
    successes: int = 0
    interventions: int = 0
    intervention_steps: int = 0
    late_steps: int = 0
    latest_s: float = 0.0
    stopped: str | None = None


def record(
    config: RecordConfig,
    env: EnvChoice,
    *,
    hardware: Hardware | None = None,
    device: dict[str, str] | None = None,
    operator: Callable[[RobotEnv], Operator] | None = None,
    append: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Record demonstrations into ``config.out``.

    Args:
        hardware: how the rig is reached.
        device: further options of the device.
        operator: makes who drives, in place of ``config.teleop``.
        append: go on with a recording of the same task, robot, sizes, rate and cameras.

    Returns:
        ``accepted``, ``rejected``, ``aborted``, ``attempts``, ``steps``, ``success_rate`` (of the
        accepted ones), ``interventions`` (take-overs from the policy), ``intervention_steps``,
        ``late_steps``, ``latest_s``, ``seconds``, ``path``, ``rejected_path``, ``episodes`` (in the
        folder now), ``interrupted``, and ``stopped``: why it ended early, or None.

    Raises:
        InvalidInputError: an option cannot be used; nothing was written.
    """
    if not config.out:
        raise InvalidInputError("recording needs a folder: give --out")
    if append and overwrite:
        raise InvalidInputError("give either --append or --overwrite")
    env = _own_env(env)
    hardware = hardware or Hardware()
    interactive = operator is not None or config.teleop != "scripted"
    world = make_world(env, hardware, config.obs, _duration(config, interactive))
    hand: Operator | None = None
    try:
        hand = operator(world) if operator else make_operator(config, world, device or {})
        policy = _policy(config, world)
        info = dataset_info(env, world, {**asdict(config), **asdict(hardware)})
        options = RecordingOptions(config.image_format)
        with Folders(Path(config.out), info, options, append, overwrite) as folders, (
            StopFlag().watching()
        ) as flag, progress(
            config.episodes, f"record {env.task}", "demonstration", quiet=quiet
        ) as bar:
            session = Session(config, world, hand, policy, folders, flag, bar, quiet)
            started_s = time.monotonic()
            session.run()
        return {**_values(session.tally), "path": str(folders.accepted.path),
                "rejected_path": folders.rejected_path, "episodes": folders.accepted.count,
                "seconds": round(time.monotonic() - started_s, 3), "interrupted": flag.stop}
    finally:
        if hand is not None:
            hand.close()
        world.close()


def make_world(
    env: EnvChoice, hardware: Hardware, obs: str = "state", duration_s: float = 0.0
) -> RobotEnv:
    """The environment, on hardware or in simulation."""
    more: dict[str, Any] = {"success": env.success or None, "goal_image": env.goal_image}
    if hardware.rig:
        more["rig_options"] = hardware.rig
    if hardware.cameras:
        more["camera_sources"] = hardware.cameras
    if obs == "state":
        more["cameras"] = ()  # a rig may have none
    elif hardware.cameras:
        more["cameras"] = tuple(n for n, source in hardware.cameras.items() if source != "none")
    if duration_s:
        more["duration_s"] = duration_s
    return make_env(env.task, env.robot, env.backend, obs, control_hz=env.control_hz,
                    randomization=env.randomize or None, **more)


def make_operator(config: RecordConfig, world: RobotEnv, device: dict[str, str]) -> Operator:
    """Who drives, as the options say."""
    options: dict[str, Any] = {}
    if config.teleop == "scripted":
        options = {"quality": config.quality, "seed": config.seed}
    return Operator.of(config.teleop, world, **{**options, **device})


class Control:
    """Who acts: the policy until the operator touches the device, and again ``handback_s`` after
    they let go; without a policy always the operator.

    While the operator has the arm and touches nothing, it stays where it is and the gripper as it
    was told last.
    """

    def __init__(
        self, operator: Operator, policy: Policy | None, handback_s: float, world: RobotEnv
    ) -> None:
        self.operator, self.policy, self._handback_s = operator, policy, handback_s
        self._world = world
        self._size = int((world.action_space.shape or (0,))[0])
        self._gripper: float | None = None
        self._until_s = -np.inf
        self.touched = False
        self.takeovers = 0
        self._has_arm = False

    def begin(self) -> None:
        """A new episode."""
        self.touched, self._until_s, self._has_arm = False, -np.inf, False
        self.operator.tell("begin")
        if self.policy is not None:
            self.policy.reset()
        self._gripper = None
        if "gripper" in self._world.parts:
            age_s = self._world.safety.config.max_state_age_s
            self._executed(2.0 * self._world.rig.gripper.opening(age_s) - 1.0)

    def act(self, observation: dict[str, NDArray[Any]]) -> tuple[NDArray[np.float32], bool]:
        """The next action, and whether it is the operator's."""
        now_s = self._world.rig.clock.now_s()
        touch = self.operator.read()
        if touch is not None:
            self.touched = True
            if not self._has_arm and self.policy is not None:
                self.takeovers += 1
            self._has_arm, self._until_s = True, now_s + self._handback_s
            return np.asarray(touch, dtype=np.float32), True
        if self.policy is None:
            return self._still(), True
        if self._has_arm and now_s < self._until_s - 1e-9:
            return self._still(), True
        self._has_arm = False
        return np.asarray(self.policy.act(observation), dtype=np.float32), False

    def sent(self, executed: NDArray[Any]) -> None:
        """What was done in a step, as the environment says."""
        if self._gripper is not None:
            self._executed(float(executed[-1]))

    def _executed(self, gripper: float) -> None:
        self._gripper = gripper
        self.operator.tell("gripper_is", 0.5 * (gripper + 1.0))

    def _still(self) -> NDArray[np.float32]:
        action = np.zeros(self._size, np.float32)
        if self._gripper is not None:
            action[-1] = self._gripper
        return action


class Session:
    """Episodes, one after the other, until enough are accepted."""

    def __init__(
        self,
        config: RecordConfig,
        world: RobotEnv,
        operator: Operator,
        policy: Policy | None,
        folders: Folders,
        flag: StopFlag,
        bar: tqdm[Any],
        quiet: bool,
    ) -> None:
        self.config, self.world, self.operator = config, world, operator
        self.folders, self.flag = folders, flag
        self.tally = Tally()
        self.control = Control(operator, policy, config.handback_s, world)
        self._bar, self._quiet = bar, quiet
        self._live_policy = policy is not None
        watch_operator(world, operator)
        flag.break_off_resets(world)

    def run(self) -> None:
        """Record until ``episodes`` are accepted, or something ends it first."""
        if self.operator.help:
            self.say(self.operator.help)
        seed: int | None = training_seed(10_000 * self.config.seed) + self.folders.known
        while not self._over():
            try:
                why = self._attempt(seed)
            except MotionInterruptedError:
                return
            except ARM_ERRORS as error:
                # Nothing moved for an episode yet: the reset was refused.
                why = self.world.safety.held or str(error)
                if self.world.safety.held is None:
                    self.tally.stopped = why
            seed = None
            if self.tally.stopped is not None:
                return
            if self.world.safety.held is not None:
                self._await_rearm(why)

    def _over(self) -> bool:
        tally = self.tally
        if self.flag.stop or tally.stopped is not None:
            return True
        if tally.accepted >= self.config.episodes:
            return True
        if tally.attempts >= self.config.most_attempts:
            tally.stopped = (f"{tally.attempts} attempts gave {tally.accepted} of "
                             f"{self.config.episodes} demonstrations")
            return True
        return False

    # -- one episode ------------------------------------------------------------------------

    def _attempt(self, seed: int | None) -> str:
        """One episode, recorded and kept where it belongs; says why it ended."""
        if self.operator.interactive and self.world.rig.scene is None:
            self.say("the arm moves by itself now, to where the next episode begins: keep clear")
        observation, info = self.world.reset(seed=seed)
        verdict, why = self._listen()
        if verdict == ABORT:
            return why
        self.control.begin()
        config = self.config
        take = Take(self.folders.accepted, self.world, {
            "teleop": config.teleop, "label": config.label, "policy": config.policy})
        try:
            verdict, why = self._drive(take, observation, info)
        except BaseException:
            take.abandon()
            raise
        # Before anything that takes time: an arm that nobody commands is held.
        rest(self.world)
        self._keep(take, verdict, why)
        return why

    def _drive(
        self, take: Take, observation: dict[str, NDArray[Any]], info: dict[str, Any]
    ) -> tuple[str, str]:
        pace = Pace(self.world, self.operator.interactive)
        waits = self.operator.interactive and not self._live_policy
        if waits:
            self.say("drive; the recording begins with your first move")
        while True:
            try:
                action, by_operator = self.control.act(observation)
                if not take.begun and (self.control.touched or not waits):
                    take.start(observation, info)
                observation, reward, terminated, truncated, info = self.world.step(action)
            except ARM_ERRORS as error:
                return ABORT, self.world.safety.held or str(error)
            self.control.sent(info["executed_action"])
            self.operator.tell("see", info)
            pace.wait()
            verdict, why = self._listen()
            over = terminated or truncated or verdict is not None
            if take.begun:
                take.add(action, observation, float(reward), terminated, over and not terminated,
                         {**info, "is_intervention": by_operator})
            if verdict is not None:
                return verdict, why
            if over:
                return self._judge(info) if take.begun else (NOTHING, "")

    def _listen(self) -> tuple[str | None, str]:
        """What the operator asked for, and whether anyone ends the recording; the most urgent of
        several requests counts."""
        events = self.operator.events()
        if "stop" in events:
            self.world.safety.hold(self.operator.problem or STOPPED)
            return ABORT, self.world.safety.held or STOPPED
        if "quit" in events:
            self.tally.stopped = "the operator quit"
            return ABORT, self.tally.stopped
        if self.flag.stop:
            return ABORT, "stopped by the user"
        verdict = next((VERDICTS[event] for event in events if event in VERDICTS), None)
        return verdict, "operator" if verdict else ""

    def _judge(self, info: dict[str, Any]) -> tuple[str, str]:
        """The verdict on an episode that ended by itself."""
        by_success = (ACCEPT if info["is_success"] else REJECT), "success"
        rest(self.world)
        self.operator.tell("end")
        verdict, why = self._listen()
        if verdict is not None:
            return verdict, why
        if self.config.judge == "success" or not self.operator.interactive:
            return by_success
        self.say("time is up: accept or reject?")
        while True:
            verdict, why = self._listen()
            if verdict is not None:
                return verdict, why
            self._idle()

    def _keep(self, take: Take, verdict: str, why: str) -> None:
        tally = self.tally
        tally.interventions = self.control.takeovers
        tally.attempts += verdict != NOTHING
        if not take.steps:
            take.discard()
            return
        tally.steps += take.steps
        tally.intervention_steps += take.interventions
        tally.late_steps += take.late_steps
        tally.latest_s = max(tally.latest_s, take.latest_s)
        if verdict == ACCEPT:
            take.commit()
            tally.accepted += 1
            tally.successes += take.success
            self._bar.update()
        else:
            take.set_apart(self.folders.rejected(), verdict, why)
            tally.rejected += verdict == REJECT
            tally.aborted += verdict == ABORT
        self._bar.set_postfix(rejected=tally.rejected, aborted=tally.aborted)
        if self.operator.interactive or verdict == ABORT:
            self.say(f"{verdict} ({why}): {take.steps} steps; {tally.accepted} of "
                     f"{self.config.episodes}, {tally.rejected} rejected, {tally.aborted} aborted")

    # -- between episodes -------------------------------------------------------------------

    def _await_rearm(self, why: str) -> None:
        """The arm is held: only the operator's explicit act releases it."""
        safety = self.world.safety
        if not self.operator.interactive:
            self.tally.stopped = (f"the arm is held ({why}), and there is nobody to re-arm it: "
                                  "look at it, then use `robot-rl robot rearm`")
            return
        self.operator.forget_rearm()
        self.say(f"the arm is held ({why}); look at it, then re-arm, or quit")
        # A re-arm from before this was said is none.
        asked = [event for event in self.operator.events() if event == "quit"]
        while safety.held is not None and not self.flag.stop:
            for event in (*asked, *self.operator.events()):
                if event == "quit":
                    self.tally.stopped = f"the arm is held ({why})"
                    return
                if event == "rearm":
                    try:
                        self.operator.release()
                        safety.rearm()
                    except (InvalidInputError, *ARM_ERRORS) as error:
                        self.say(f"it stays held: {error}")
                    else:
                        self.say("released")
            self._idle()

    def _idle(self) -> None:
        """Let a moment pass, of the rig's own time too: a held arm brakes meanwhile."""
        clock = self.world.rig.clock
        clock.sleep_until(clock.now_s() + _LOOK_S)
        if self.world.rig.scene is not None:
            time.sleep(_LOOK_S)

    def say(self, text: str) -> None:
        """A line for the operator on standard error."""
        if not self._quiet:
            tqdm.write(text, file=sys.stderr)


class Pace:
    """Keeps a simulation to real time where a person drives it; hardware keeps its own."""

    def __init__(self, world: RobotEnv, interactive: bool) -> None:
        self._period_s = world.period_s if interactive and world.rig.scene is not None else 0.0
        self._tick_s = time.monotonic()

    def wait(self) -> None:
        if not self._period_s:
            return
        # What is late is not made up for.
        self._tick_s = max(self._tick_s + self._period_s, time.monotonic())
        time.sleep(max(self._tick_s - time.monotonic(), 0.0))


def watch_operator(world: RobotEnv, operator: Operator) -> None:
    """Let the safety filter ask the operator whether to stop, at any time."""
    add_watch = getattr(world.safety, "add_watch", None)
    if add_watch is not None:
        add_watch("operator", operator.watch)


def rest(world: RobotEnv) -> None:
    """Come to rest on purpose: nobody drives for a while."""
    pause = getattr(world.safety, "rest", None)
    if pause is not None and world.safety.held is None:
        pause()


def _own_env(env: EnvChoice) -> EnvChoice:
    if not env.task:
        raise InvalidInputError("recording needs a task: give --task")
    if is_external(env.task):
        raise InvalidInputError(f"the task {env.task} has no arm to drive; valid are those of "
                                "`robot-rl list`")
    return replace(env, task=canonical_task(env.task))


def _duration(config: RecordConfig, interactive: bool) -> float:
    return config.duration_s or (_PATIENCE_S if interactive else 0.0)


def _policy(config: RecordConfig, world: RobotEnv) -> Policy | None:
    if not config.policy:
        return None
    if config.policy == "scripted":
        return make_policy("scripted", world, quality=config.policy_quality, seed=config.seed + 1)
    return make_policy("checkpoint", world, checkpoint=config.policy)


def _values(tally: Tally) -> dict[str, Any]:
    values = asdict(tally)
    successes = values.pop("successes")
    return {**values, "latest_s": round(tally.latest_s, 4),
            "success_rate": successes / max(tally.accepted, 1)}
