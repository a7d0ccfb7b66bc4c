"""Force sensor and task sensors of a simulation, read off the engine's last physics step.

Nothing is computed until it is asked for. A :class:`Disturbance` gives a sensor the noise, the
bias and the drift of a real one, for tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from robot_rl.errors import InvalidInputError, StaleDataError
from robot_rl.interfaces import Array, Reading, Sensor, Wrench
from robot_rl.kinematics import Kinematics
from robot_rl.specs import RobotSpec, SceneSpec, SlideJoint
from robot_rl.specs.scene import JointSensor, RegionSensor

if TYPE_CHECKING:
    from robot_rl_sim.common import Simulation

Contact = tuple[Array, Array]
"""Where the world touches the tool (3,) [m] and with what force (3,) [N], in base axes."""

_ZERO_SAMPLES = 50


def tool_links(spec: RobotSpec) -> tuple[str, ...]:
    """The links beyond a sensor at the wrist: the hand, what it holds for good, the fingers."""
    gripper = spec.gripper
    return (gripper.base_link, gripper.tcp_link, *gripper.finger_links)


@dataclass(frozen=True)
class Disturbance:
    """What a real sensor adds, in the unit of the reading (a number, or one for each component).

    ``noise`` is the standard deviation of every reading, ``bias`` a constant offset and ``drift``
    its change a second.
    """

    noise: float | Sequence[float] = 0.0
    bias: float | Sequence[float] = 0.0
    drift: float | Sequence[float] = 0.0
    seed: int = 0


class _Disturbed:
    """Adds a disturbance to readings; none by default."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.disturb(Disturbance())

    def disturb(self, disturbance: Disturbance) -> None:
        """Disturb every reading from now on; the drift counts from time 0."""
        self._generator = np.random.default_rng(disturbance.seed)
        size = (self._size,)
        self._noise, self._bias, self._drift = (
            np.broadcast_to(np.asarray(value, dtype=np.float64), size)
            for value in (disturbance.noise, disturbance.bias, disturbance.drift)
        )

    def _add_to(self, values: Array, time_s: float) -> Array:
        noise = self._noise * self._generator.standard_normal(self._size)
        return np.asarray(values + self._bias + self._drift * time_s + noise)


class SimForceSensor(_Disturbed):
    """:class:`robot_rl.interfaces.ForceSensor` of a simulation: the contact forces of the last
    physics step on hand and fingers, and with them the weight of what the fingers hold.

    The tool's own weight and inertia are not in it, as a driver compensates for them. Just after
    :meth:`Simulation.place` no step was made yet, and nothing is felt.
    """

    def __init__(self, simulation: Simulation) -> None:
        super().__init__(6)
        self._simulation = simulation
        self._kinematics = Kinematics(simulation.spec)
        self._offset = np.zeros(6)

    def wrench(self, max_age_s: float) -> Wrench:
        _check_age(max_age_s)
        values = self._sample(self._felt()) - self._offset
        return Wrench(values[:3], values[3:], self._simulation.now_s())

    def zero(self) -> None:
        felt = self._felt()
        count = _ZERO_SAMPLES if self._noise.any() else 1
        self._offset = np.mean([self._sample(felt) for _ in range(count)], axis=0)

    def _sample(self, felt: Array) -> Array:
        return self._add_to(felt, self._simulation.now_s())

    def _felt(self) -> Array:
        """Force and torque (6,) of every contact at the tool centre point."""
        total = np.zeros(6)
        tool = None
        for point, force in self._simulation.tool_contacts():
            if tool is None:
                tool = self._kinematics.forward(self._simulation.joint_state()[0])[:3, 3]
            total[:3] += force
            total[3:] += np.cross(point - tool, force)
        return total


class SimSensor(_Disturbed):
    """:class:`robot_rl.interfaces.Sensor` of a simulation: a number, freshly read."""

    def __init__(
        self, simulation: Simulation, name: str, unit: str, value: Callable[[], float]
    ) -> None:
        super().__init__(1)
        self.name, self.unit = name, unit
        self._simulation = simulation
        self._value = value

    def read(self, max_age_s: float) -> Reading:
        _check_age(max_age_s)
        now = self._simulation.now_s()
        return Reading(float(self._add_to(np.array([self._value()]), now)[0]), now)


def scene_sensors(simulation: Simulation, scene: SceneSpec) -> dict[str, Sensor]:
    """The sensors that the scene declares, by name.

    Raises:
        InvalidInputError: one is of a joint or body that the scene has not, or a name came twice.
    """
    kinematics = Kinematics(simulation.spec)
    sensors: dict[str, Sensor] = {}
    for declared in scene.sensors:
        if declared.name in sensors:
            raise InvalidInputError(f"the scene has two sensors {declared.name!r}")
        if isinstance(declared, JointSensor):
            unit, value = _encoder(simulation, declared)
        else:
            unit, value = "", _switch(simulation, kinematics, declared)
        sensors[declared.name] = SimSensor(simulation, declared.name, unit, value)
    return sensors


def _encoder(simulation: Simulation, sensor: JointSensor) -> tuple[str, Callable[[], float]]:
    """Unit and reading of the joint's position."""
    simulation.scene_joint(sensor.joint)
    slides = any(
        isinstance(body.motion, SlideJoint) and body.motion.name == sensor.joint
        for body in simulation.scene.bodies
    )
    return "m" if slides else "rad", lambda: simulation.scene_joint(sensor.joint)[0]


def _switch(
    simulation: Simulation, kinematics: Kinematics, sensor: RegionSensor
) -> Callable[[], float]:
    """1 while the tool or a body is in the sensor's box, else 0."""
    low, high = np.array(sensor.low_m), np.array(sensor.high_m)
    by_tool = sensor.body == "tool"
    if not by_tool:
        simulation.body_state(sensor.body)

    def read() -> float:
        if by_tool:
            pose = kinematics.forward(simulation.joint_state()[0])
            point = pose[:3, 3] - simulation.origin_m
        else:
            point = simulation.body_state(sensor.body).position_m
        return float((point >= low).all() and (point <= high).all())

    return read


def mujoco_contacts(mujoco: Any, model: Any, data: Any, bodies: frozenset[int]) -> (
    Iterator[Contact]
):
    """Contacts of ``bodies`` (MuJoCo's numbers) with all others, and the forces on ``bodies``."""
    owner = model.geom_bodyid
    local = np.zeros(6)
    for index in range(data.ncon):
        contact = data.contact[index]
        first, second = (int(owner[geom]) in bodies for geom in (contact.geom1, contact.geom2))
        if first == second:
            continue
        # The force on the second geom, in the contact's own axes (its rows).
        mujoco.mj_contactForce(model, data, index, local)
        force = contact.frame.reshape(3, 3).T @ local[:3]
        yield contact.pos.copy(), force if second else -force


def bullet_contacts(bullet: Any, client: int, arm: int, links: frozenset[int]) -> (
    Iterator[Contact]
):
    """Contacts of the arm's ``links`` with everything else, and the forces on the links."""
    for contact in bullet.getContactPoints(bodyA=arm, physicsClientId=client):
        if contact[3] not in links or contact[2] == arm:
            continue
        # The normal points from the other body to the arm.
        force = contact[9] * np.array(contact[7])
        force += contact[10] * np.array(contact[11]) + contact[12] * np.array(contact[13])
        yield np.array(contact[5]), force


def _check_age(max_age_s: float) -> None:
    """A simulated reading is made when it is asked for, so its age is 0."""
    if not max_age_s >= 0.0:
        raise StaleDataError(f"the reading is 0 s old, older than the {max_age_s} s allowed")
