"""The rig on MuJoCo."""

from __future__ import annotations

import atexit
import importlib
import math
import os
import sys
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_rl.errors import InvalidInputError, MissingDependencyError, RobotRLError
from robot_rl.interfaces import Array, BodyState, Placement, Rig, RigRequest
from robot_rl.kinematics import quat_from_rotation
from robot_rl.specs import BodySpec, Geom, HingeJoint, SlideJoint
from robot_rl_sim.common import (
    ARM_ARMATURE_KG_M2,
    ARM_DAMPING,
    ARM_FREQUENCY_RAD_S,
    COLLIDES_WITH,
    FINGER_ARMATURE_KG,
    GRAVITY_M_S2,
    LIGHT_DIRECTION,
    MARKER_RADIUS_M,
    MARKER_RGBA,
    TABLE_RGBA,
    Group,
    Simulation,
    body_group,
    colliding_links,
    finger_stiffness,
)
from robot_rl_sim.geometry import (
    CameraPose,
    body_inertia,
    joint_axis,
    joint_range,
    shifted_rgba,
    unit_quat,
)
from robot_rl_sim.sensors import Contact, mujoco_contacts, tool_links
from robot_rl_sim.urdf_writer import link_rgba, urdf_text

_HIDDEN_GROUP = 3
_MAX_DRAWN_GEOMS = 500
# Where two surfaces differ in priority, the friction of the higher one counts.
_PRIORITY = {Group.ARM: 0, Group.STATIC: 1, Group.JOINTED: 1, Group.FREE: 2}


def make_rig(request: RigRequest) -> Rig:
    """An arm, its gripper and a scene in MuJoCo.

    Raises:
        MissingDependencyError: MuJoCo is not installed.
    """
    return MujocoSimulation(request).rig()


def _import_mujoco() -> Any:
    """MuJoCo, also where its rendering cannot be loaded: states need no graphics."""
    try:
        import mujoco
    except ImportError as error:
        raise MissingDependencyError(
            "MuJoCo is not installed: pip install 'robot_rl[sim]'"
        ) from error
    except Exception:
        # A graphics library is missing or MUJOCO_GL is wrong; without graphics it still loads.
        wanted = os.environ.get("MUJOCO_GL")
        os.environ["MUJOCO_GL"] = "disable"
        try:
            import mujoco
        finally:
            os.environ.pop("MUJOCO_GL")
            if wanted is not None:
                os.environ["MUJOCO_GL"] = wanted
    # MuJoCo times its own parts with it, which takes a tenth of a small step.
    mujoco.set_mjcb_time(None)
    return mujoco


class MujocoSimulation(Simulation):
    """The rig's physics, compiled from the arm's URDF and the scene's description."""

    def __init__(self, request: RigRequest) -> None:
        super().__init__(request)
        self._mujoco = mujoco = _import_mujoco()
        self._model = model = self._compile()
        self._data = data = mujoco.MjData(model)
        self._renderer: _Renderer | None = None
        self._nominal_mass = model.body_mass.copy()
        self._nominal_inertia = model.body_inertia.copy()
        self._nominal_friction = model.geom_friction.copy()
        self._nominal_rgba = model.geom_rgba.copy()
        names = list(self._bodies)
        self._body_ids = {name: model.body(name).id for name in names}
        self._movable = [
            self._body_ids[name] for name in names if self._bodies[name].motion != "fixed"
        ]
        self._free = {}
        for name, body in self._bodies.items():
            if body.motion == "free":
                joint = model.body(name).jntadr[0]
                self._free[name] = (
                    slice(model.jnt_qposadr[joint], model.jnt_qposadr[joint] + 7),
                    slice(model.jnt_dofadr[joint], model.jnt_dofadr[joint] + 6),
                )
        self._hinges = {}
        for name in self._joints:
            joint = model.joint(name).id
            self._hinges[name] = (model.jnt_qposadr[joint], model.jnt_dofadr[joint])
        self._tool_bodies = frozenset(model.body(name).id for name in tool_links(self.spec))
        n = self.n_joints
        fingers = [model.joint(name).qposadr[0] for name in self.spec.gripper.finger_joints]
        arm = [model.joint(name).qposadr[0] for name in self.spec.joint_names]
        assert arm == list(range(n)) and fingers == [n, n + 1], "the URDF's joints come in order"
        # Views into MjData's arrays: they stay valid for as long as it lives.
        self._qpos, self._qvel = data.qpos, data.qvel
        self._arm_position, self._arm_velocity = data.qpos[:n], data.qvel[:n]
        self._finger_position = data.qpos[n : n + 2]
        self._arm_speed_ctrl, self._finger_ctrl = data.ctrl[:n], data.ctrl[n:]
        self._arm_act = data.act[:n]
        self._lead_s = 2.0 * ARM_DAMPING / ARM_FREQUENCY_RAD_S
        self._step = mujoco.mj_step
        home = np.array(self.spec.home_rad, dtype=np.float64)
        self._set_gains(home)
        self.place(home, Placement(np.zeros(3)))

    # Building.

    def _compile(self) -> Any:
        mujoco = self._mujoco
        spec = mujoco.MjSpec.from_string(urdf_text(self.spec, self.scene.held))
        # Every link's shapes come twice, to see and to touch; one of them does for both here.
        for geom in [geom for geom in spec.geoms if not geom.contype]:
            spec.delete(geom)
        spec.compiler.discardvisual = False
        option = spec.option
        option.timestep = self.step_s
        option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
        option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
        option.jacobian = mujoco.mjtJacobian.mjJAC_DENSE
        # A state that is not finite is to be seen, not to be reset in silence; the rest is speed.
        option.disableflags = (
            mujoco.mjtDisableBit.mjDSBL_AUTORESET
            | mujoco.mjtDisableBit.mjDSBL_ISLAND
            | mujoco.mjtDisableBit.mjDSBL_SENSOR
        )
        # The arm's controller compensates its weight. Without gravity it has none, which is
        # quicker than to compensate it, and the scene's bodies get theirs as a force.
        option.gravity = [0.0, 0.0, 0.0]
        fast = self.request.render_quality == "fast"
        if fast:
            spec.visual.quality.offsamples = 0
            spec.visual.quality.shadowsize = 0
            # Coarser round shapes halve the time of a small image drawn without a GPU.
            spec.visual.quality.numslices = 20
            spec.visual.quality.numstacks = 8
            spec.visual.quality.numquads = 1
        spec.visual.headlight.ambient = [0.35, 0.35, 0.35]
        spec.visual.headlight.diffuse = [0.25, 0.25, 0.25]
        spec.visual.headlight.specular = [0.0, 0.0, 0.0]
        spec.visual.map.znear = 0.01
        spec.visual.map.zfar = 10.0
        spec.visual.map.shadowclip = 1.5
        spec.stat.extent = 1.0
        spec.stat.center = self.origin_m
        spec.add_texture(
            name="sky",
            type=mujoco.mjtTexture.mjTEXTURE_SKYBOX,
            builtin=mujoco.mjtBuiltin.mjBUILTIN_FLAT,
            rgb1=[1.0, 1.0, 1.0],
            rgb2=[1.0, 1.0, 1.0],
            width=8,
            height=48,
        )
        light = np.array(LIGHT_DIRECTION)
        spec.worldbody.add_light(
            pos=self.origin_m - 3.0 * light,
            dir=light,
            type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
            diffuse=[0.5, 0.5, 0.5],
            specular=[0.0, 0.0, 0.0],
            castshadow=not fast,
        )
        self._dress_arm(spec)
        self._add_actuators(spec)
        self._add_table(spec)
        for body in self.scene.bodies:
            self._add_body(spec, body)
        return spec.compile()

    def _dress_arm(self, spec: Any) -> None:
        colors = link_rgba(self.spec)
        touching = colliding_links(self.spec)
        for body in spec.bodies:
            if body.name == "world":
                continue
            for geom in body.geoms:
                geom.rgba = colors[body.name]
                self._collide(geom, Group.ARM if body.name in touching else None)
        for joint in spec.joints:
            if joint.name in self.spec.joint_names:
                joint.armature = ARM_ARMATURE_KG_M2
            # The actuators have the force limits; the URDF's would clip the same force again.
            joint.actfrclimited = False
            if joint.name in self.spec.gripper.finger_joints:
                joint.armature = FINGER_ARMATURE_KG

    def _collide(self, geom: Any, group: Group | None) -> None:
        geom.contype = int(group or 0)
        geom.conaffinity = 0
        if group is not None:
            geom.priority = _PRIORITY[group]
            # More damping than MuJoCo's default, or a pushed puck hops ahead of the finger, and
            # harder, or the gripper squeezes a cube together.
            geom.solref = [0.02, 1.5]
            geom.solimp = [0.98, 0.995, 0.001, 0.5, 2.0]
            # One side naming the other is enough; the arm never names anything.
            if group != Group.ARM:
                geom.conaffinity = int(COLLIDES_WITH[group])

    def _add_actuators(self, spec: Any) -> None:
        mujoco = self._mujoco
        joint_transmission = mujoco.mjtTrn.mjTRN_JOINT
        for joint in self.spec.joints:
            # The activation is the set-point and the control its velocity, so a straight piece
            # of the stream runs through many steps without a call in between.
            actuator = spec.add_actuator(
                name=joint.name, target=joint.name, trntype=joint_transmission
            )
            actuator.dyntype = mujoco.mjtDyn.mjDYN_INTEGRATOR
            actuator.gaintype = mujoco.mjtGain.mjGAIN_FIXED
            actuator.biastype = mujoco.mjtBias.mjBIAS_AFFINE
            actuator.forcelimited = True
            actuator.forcerange = [-joint.torque_nm, joint.torque_nm]
        gripper = self.spec.gripper
        stiffness = finger_stiffness(self.spec)
        mass = gripper.finger_mass_kg + FINGER_ARMATURE_KG
        for name in gripper.finger_joints:
            actuator = spec.add_actuator(name=name, target=name, trntype=joint_transmission)
            actuator.gaintype = mujoco.mjtGain.mjGAIN_FIXED
            actuator.biastype = mujoco.mjtBias.mjBIAS_AFFINE
            damping = 2.0 * math.sqrt(stiffness * mass)
            actuator.gainprm[0] = stiffness
            actuator.biasprm[1:3] = [-stiffness, -damping]
            actuator.forcelimited = True
            actuator.forcerange = [-gripper.force_n, gripper.force_n]

    def _set_gains(self, home_rad: Array) -> None:
        """Gains from the inertia that each joint sees in the home posture."""
        mujoco, model, data = self._mujoco, self._model, self._data
        self._arm_position[:] = home_rad
        mujoco.mj_forward(model, data)
        full = np.zeros((model.nv, model.nv))
        mujoco.mj_fullM(model, data, full)
        for i in range(self.n_joints):
            stiffness = full[i, i] * ARM_FREQUENCY_RAD_S**2
            model.actuator_gainprm[i, 0] = stiffness
            model.actuator_biasprm[i, 1] = -stiffness
            model.actuator_biasprm[i, 2] = -stiffness * self._lead_s

    def _add_table(self, spec: Any) -> None:
        mujoco = self._mujoco
        size = self.scene.table_size_m
        spec.worldbody.add_geom(
            name="table",
            type=mujoco.mjtGeom.mjGEOM_BOX,
            size=[0.5 * value for value in size],
            pos=[*self.origin_m[:2], self.origin_m[2] - 0.5 * size[2]],
            rgba=TABLE_RGBA,
            contype=0,
            conaffinity=0,
        )
        top = spec.worldbody.add_geom(
            name="table_top",
            type=mujoco.mjtGeom.mjGEOM_PLANE,
            size=[1.0, 1.0, 0.1],
            pos=self.origin_m,
            friction=[self.scene.table_friction, 0.005, 0.0001],
            group=_HIDDEN_GROUP,
        )
        self._collide(top, Group.STATIC)

    def _add_body(self, spec: Any, body: BodySpec) -> None:
        mujoco = self._mujoco
        quat = unit_quat(body.quat_xyzw)
        element = spec.worldbody.add_body(
            name=body.name,
            pos=self.origin_m + body.position_m,
            quat=[quat[3], *quat[:3]],
        )
        group = body_group(body)
        for geom in body.geoms:
            added = element.add_geom(
                type=_geom_type(mujoco, geom),
                size=_geom_size(geom),
                pos=geom.position_m,
                rgba=geom.rgba,
                friction=[body.friction, 0.005, 0.0001],
            )
            self._collide(added, group if geom.collides else None)
        if group is Group.STATIC:
            return
        inertia = body_inertia(body)
        turn = quat_from_rotation(inertia.axes)
        element.explicitinertial = True
        element.mass = inertia.mass_kg
        element.ipos = inertia.com_m
        element.iquat = [turn[3], *turn[:3]]
        element.inertia = inertia.moments_kg_m2
        if body.motion == "free":
            element.add_freejoint()
            return
        joint = body.motion
        assert isinstance(joint, (SlideJoint, HingeJoint))
        slides = isinstance(joint, SlideJoint)
        element.add_joint(
            name=joint.name,
            type=mujoco.mjtJoint.mjJNT_SLIDE if slides else mujoco.mjtJoint.mjJNT_HINGE,
            axis=joint_axis(joint),
            limited=True,
            range=_range_of(joint, spec),
            frictionloss=joint.friction_n if isinstance(joint, SlideJoint) else joint.friction_nm,
            damping=[joint.damping, 0.0, 0.0],
        )

    # Physics.

    def _advance(self, ticks: int) -> None:
        stream = self.stream
        if stream.elapsed == 0:
            velocity = stream.velocity
            self._arm_speed_ctrl[:] = velocity
            # Ahead by the lag of the damping, so that a steady motion is followed without error.
            np.multiply(velocity, self._lead_s, out=self._arm_act)
            self._arm_act += stream.start
        self._finger_ctrl[:] = self.finger_target_m
        self._step(self._model, self._data, ticks)

    def _weigh(self) -> None:
        """Put gravity on everything in the scene that moves."""
        self._data.xfrc_applied[self._movable, 2] = (
            -GRAVITY_M_S2 * self._model.body_mass[self._movable]
        )

    def joint_state(self) -> tuple[Array, Array]:
        return self._arm_position.copy(), self._arm_velocity.copy()

    def finger_positions(self) -> tuple[float, float]:
        return float(self._finger_position[0]), float(self._finger_position[1])

    def _free_state(self, name: str) -> BodyState:
        pose, speed = self._free[name]
        qpos = self._qpos[pose]
        qvel = self._qvel[speed]
        w, x, y, z = qpos[3:].tolist()
        a, b, c = qvel[3:].tolist()
        # MuJoCo gives a free body's spin in its own axes.
        s, t, u = 2.0 * (y * c - z * b), 2.0 * (z * a - x * c), 2.0 * (x * b - y * a)
        spin = np.array(
            [
                a + w * s + y * u - z * t,
                b + w * t + z * s - x * u,
                c + w * u + x * t - y * s,
            ]
        )
        return BodyState(qpos[:3] - self.origin_m, np.array([x, y, z, w]), qvel[:3].copy(), spin)

    def _scene_joint(self, name: str) -> tuple[float, float]:
        position, velocity = self._hinges[name]
        return float(self._qpos[position]), float(self._qvel[velocity])

    def tool_contacts(self) -> Iterator[Contact]:
        return mujoco_contacts(self._mujoco, self._model, self._data, self._tool_bodies)

    def _place(
        self,
        arm_rad: Array,
        finger_m: float,
        bodies: Mapping[str, tuple[Array, Array]],
        joints: Mapping[str, float],
    ) -> None:
        self._mujoco.mj_resetData(self._model, self._data)
        self._weigh()
        self._arm_position[:] = arm_rad
        self._finger_position[:] = finger_m
        for name, (position, quat) in bodies.items():
            qpos = self._qpos[self._free[name][0]]
            qpos[:3] = self.origin_m + position
            qpos[3] = quat[3]
            qpos[4:] = quat[:3]
        for name, value in joints.items():
            self._qpos[self._hinges[name][0]] = value
        self._arm_act[:] = arm_rad
        self._finger_ctrl[:] = finger_m

    def _save(self) -> dict[str, NDArray[Any]]:
        mujoco = self._mujoco
        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        state = np.empty(mujoco.mj_stateSize(self._model, kind))
        mujoco.mj_getState(self._model, self._data, state, kind)
        return {"mujoco_integration": state}

    def _restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        mujoco = self._mujoco
        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        saved = np.asarray(state["mujoco_integration"], dtype=np.float64)
        size = mujoco.mj_stateSize(self._model, kind)
        if saved.shape != (size,):
            raise InvalidInputError(
                f"the state has {saved.shape} numbers, this scene has ({size},): "
                "it was saved from another robot or scene"
            )
        mujoco.mj_resetData(self._model, self._data)
        mujoco.mj_setState(self._model, self._data, saved, kind)

    def _apply_randomization(self) -> None:
        mujoco, model, values = self._mujoco, self._model, self.randomization
        model.body_mass[:] = self._nominal_mass
        model.body_inertia[:] = self._nominal_inertia
        model.geom_friction[:] = self._nominal_friction
        model.geom_rgba[:] = self._nominal_rgba
        for body in self._movable:
            model.body_mass[body] *= values.mass_scale
            model.body_inertia[body] *= values.mass_scale
            model.geom_friction[model.geom_bodyid == body, 0] *= values.friction_scale
        for body in self._body_ids.values():
            for geom in np.flatnonzero(model.geom_bodyid == body):
                model.geom_rgba[geom] = shifted_rgba(self._nominal_rgba[geom], values.color_shift)
        # In scratch data: it leaves the state of the data it is given at the reference pose.
        mujoco.mj_setConst(model, mujoco.MjData(model))
        self._weigh()

    # Rendering.

    def _render(
        self, pose: CameraPose, height: int, width: int, markers: Mapping[str, Array]
    ) -> NDArray[np.uint8]:
        if self._renderer is None:
            self._renderer = _Renderer(self._mujoco, self._model, self.request.render_quality)
        # A step leaves the bodies' poses one step behind the joints.
        self._mujoco.mj_kinematics(self._model, self._data)
        self._mujoco.mj_camlight(self._model, self._data)
        drawn = [self.origin_m + position for position in markers.values()]
        return self._renderer.draw(self._data, pose, self.origin_m, height, width, drawn)

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


def _range_of(joint: SlideJoint | HingeJoint, spec: Any) -> list[float]:
    """The joint's range in the unit that the spec's compiler takes."""
    lower, upper = joint_range(joint)
    if isinstance(joint, HingeJoint) and spec.compiler.degree:
        return [math.degrees(lower), math.degrees(upper)]
    return [lower, upper]


def _geom_type(mujoco: Any, geom: Geom) -> Any:
    return {
        "box": mujoco.mjtGeom.mjGEOM_BOX,
        "cylinder": mujoco.mjtGeom.mjGEOM_CYLINDER,
        "sphere": mujoco.mjtGeom.mjGEOM_SPHERE,
    }[geom.shape]


def _geom_size(geom: Geom) -> list[float]:
    half = [0.5 * value for value in geom.size_m]
    return half + [0.0] * (3 - len(half))


class _Renderer:
    """An off-screen picture of the model, drawn by OpenGL."""

    def __init__(self, mujoco: Any, model: Any, quality: str) -> None:
        self._mujoco, self._model = mujoco, model
        buffer = model.vis.global_
        try:
            self._gl = _context_type(mujoco)(buffer.offwidth, buffer.offheight)
            self._gl.make_current()
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        except Exception as error:
            raise RobotRLError(_no_graphics(error)) from error
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._option = mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._scene = mujoco.MjvScene(model, maxgeom=_MAX_DRAWN_GEOMS)
        if quality == "fast":
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                self._scene.flags[flag] = False
        self._all = mujoco.mjtCatBit.mjCAT_ALL
        self._open = True
        # At exit EGL shuts down, and a context that is still open then complains.
        atexit.register(_close, weakref.ref(self))

    def draw(
        self,
        data: Any,
        pose: CameraPose,
        origin_m: Array,
        height: int,
        width: int,
        markers_m: list[Array],
    ) -> NDArray[np.uint8]:
        """An image (height, width, 3); the markers' positions are in the base frame."""
        mujoco, scene = self._mujoco, self._scene
        self._gl.make_current()
        if height > self._context.offHeight or width > self._context.offWidth:
            mujoco.mjr_resizeOffscreen(
                max(width, self._context.offWidth),
                max(height, self._context.offHeight),
                self._context,
            )
        mujoco.mjv_updateScene(
            self._model, data, self._option, None, self._camera, self._all, scene
        )
        for position in markers_m:
            if scene.ngeom < scene.maxgeom:
                mujoco.mjv_initGeom(
                    scene.geoms[scene.ngeom],
                    mujoco.mjtGeom.mjGEOM_SPHERE,
                    np.full(3, MARKER_RADIUS_M),
                    position,
                    np.eye(3).ravel(),
                    np.array(MARKER_RGBA, dtype=np.float32),
                )
                scene.ngeom += 1
        self._look(pose, origin_m, width / height)
        area = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(area, scene, self._context)
        image = np.empty((height, width, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(image, None, area, self._context)
        return np.ascontiguousarray(image[::-1])

    def _look(self, pose: CameraPose, origin_m: Array, aspect: float) -> None:
        """Put the scene's two eyes at one pose of a pinhole camera."""
        near, far = 0.01, 10.0
        top = near * math.tan(0.5 * math.radians(pose.fov_deg))
        for eye in self._scene.camera:
            eye.pos = origin_m + pose.position_m
            eye.forward = -pose.rotation[:, 2]
            eye.up = pose.rotation[:, 1]
            eye.frustum_top, eye.frustum_bottom = top, -top
            eye.frustum_center = 0.0
            eye.frustum_width = top * aspect
            eye.frustum_near, eye.frustum_far = near, far

    def close(self) -> None:
        if self._open:
            self._open = False
            self._gl.make_current()
            self._context.free()
            self._gl.free()


def _close(renderer: weakref.ref[_Renderer]) -> None:
    drawn = renderer()
    if drawn is not None:
        drawn.close()


def _context_type(mujoco: Any) -> Any:
    """The kind of OpenGL context MUJOCO_GL names; off-screen EGL where there is no display.

    MuJoCo itself decides once, when it is first imported, whoever does that.
    """
    wanted = os.environ.get("MUJOCO_GL", "").lower().strip()
    display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if not wanted and sys.platform == "linux" and not display:
        wanted = "egl"
    if wanted in ("egl", "osmesa"):
        return importlib.import_module(f"mujoco.{wanted}").GLContext
    return mujoco.GLContext


def _no_graphics(reason: object) -> str:
    first = next(iter(str(reason).splitlines()), "").rstrip(". ")
    return (
        f"MuJoCo cannot draw: {first or 'no OpenGL'}. Install EGL (libegl1) or OSMesa "
        "(libosmesa6) and set MUJOCO_GL=egl or MUJOCO_GL=osmesa"
    )
