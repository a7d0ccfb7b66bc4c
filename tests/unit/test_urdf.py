"""The committed URDFs: up to date, loadable as they are, with the inertias of the specification."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as xml

import numpy as np
import pytest

from robot_rl.kinematics import rotation_from_quat
from robot_rl.specs import RobotSpec, list_robots, load_robot
from robot_rl.specs.robot import Inertia
from robot_rl_sim import urdf_writer
from robot_rl_sim.urdf_writer import (
    FOLDER,
    flange_link,
    physical_inertia,
    urdf_text,
)

mujoco = pytest.importorskip("mujoco")
pybullet = pytest.importorskip("pybullet")

ROBOTS = ("fr3", "panda", "sawyer")


def tensor(inertia: Inertia) -> np.ndarray:
    return np.array(
        [
            [inertia.xx, inertia.xy, inertia.xz],
            [inertia.xy, inertia.yy, inertia.yz],
            [inertia.xz, inertia.yz, inertia.zz],
        ]
    )


def bodies(spec: RobotSpec) -> dict[str, tuple[float, tuple[float, ...], np.ndarray]]:
    """Mass, centre of mass and inertia tensor of every link that has a mass."""
    gripper = spec.gripper
    found = {link.name: (link.mass_kg, link.com_xyz_m, link.inertia_kg_m2) for link in spec.links}
    found[gripper.base_link] = (
        gripper.base_mass_kg,
        gripper.base_com_xyz_m,
        gripper.base_inertia_kg_m2,
    )
    for name in gripper.finger_links:
        found[name] = (
            gripper.finger_mass_kg,
            gripper.finger_com_xyz_m,
            gripper.finger_inertia_kg_m2,
        )
    return {
        name: (mass, com, tensor(physical_inertia(inertia)))
        for name, (mass, com, inertia) in found.items()
    }


def test_the_committed_files_are_up_to_date():
    assert sorted(list_robots()) == sorted(path.stem for path in FOLDER.glob("*.urdf"))
    assert urdf_writer.main(["--check"]) == 0


def test_check_finds_a_stale_file_and_writing_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(urdf_writer, "FOLDER", tmp_path)
    assert urdf_writer.main(["--check"]) == 1
    assert "panda.urdf" in capsys.readouterr().out
    assert urdf_writer.main([]) == 0
    assert urdf_writer.main(["--check"]) == 0
    (tmp_path / "panda.urdf").write_text("<robot/>")
    assert urdf_writer.main(["--check"]) == 1


def test_every_number_of_a_specification_is_one():
    # YAML 1.1 reads 5e-05 as text.
    for name in ROBOTS:
        for _, com, inertia in bodies(load_robot(name)).values():
            assert all(isinstance(value, float) for value in com)
            assert inertia.dtype == np.float64


@pytest.mark.parametrize("name", ROBOTS)
def test_names_limits_and_shapes(name: str):
    spec = load_robot(name)
    root = xml.fromstring(urdf_text(spec))
    links = {link.get("name") for link in root.iter("link")}
    joints = {
        joint.get("name"): joint for joint in root.findall("joint") if joint.get("type") != "fixed"
    }
    assert {link.name for link in spec.links} <= links
    assert {flange_link(spec), spec.gripper.base_link, spec.gripper.tcp_link} <= links
    assert set(joints) == {*spec.joint_names, *spec.gripper.finger_joints}
    for joint in spec.joints:
        limit = joints[joint.name].find("limit")
        assert limit is not None
        read = [float(limit.get(key, "nan")) for key in ("lower", "upper", "effort", "velocity")]
        assert read == [joint.lower_rad, joint.upper_rad, joint.torque_nm, joint.velocity_rad_s]
    shapes = {child.tag for geometry in root.iter("geometry") for child in geometry}
    assert shapes <= {"box", "cylinder", "sphere"}
    assert not list(root.iter("mimic"))
    assert len(list(root.iter("collision"))) <= 20


@pytest.mark.parametrize("name", ROBOTS)
def test_mujoco_reads_the_masses_and_inertias(name: str):
    spec = load_robot(name)
    model = mujoco.MjModel.from_xml_path(str(FOLDER / f"{name}.urdf"))
    for link, (mass, com, expected) in bodies(spec).items():
        body = model.body(link)
        if body.id == 0:
            continue
        w, x, y, z = body.iquat
        axes = rotation_from_quat((x, y, z, w))
        assert body.mass[0] == mass
        np.testing.assert_allclose(body.ipos, com, atol=1e-12)
        np.testing.assert_allclose((axes * body.inertia) @ axes.T, expected, atol=2e-8)
    total = sum(mass for mass, _, _ in bodies(spec).values())
    assert model.body_mass.sum() == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize("name", ROBOTS)
def test_pybullet_reads_the_masses_and_inertias(name: str):
    spec = load_robot(name)
    client = pybullet.connect(pybullet.DIRECT)
    try:
        # A base that is fixed has no mass in PyBullet, so this one is free.
        arm = pybullet.loadURDF(
            str(FOLDER / f"{name}.urdf"),
            useFixedBase=False,
            flags=pybullet.URDF_USE_INERTIA_FROM_FILE,
            physicsClientId=client,
        )
        links = {spec.links[0].name: -1}
        for i in range(pybullet.getNumJoints(arm, physicsClientId=client)):
            links[pybullet.getJointInfo(arm, i, physicsClientId=client)[12].decode()] = i
        expected = bodies(spec)
        for link, index in links.items():
            read = pybullet.getDynamicsInfo(arm, index, physicsClientId=client)
            if link not in expected:
                assert read[0] == 0.0
                continue
            mass, com, inertia = expected[link]
            axes = rotation_from_quat(read[4])
            assert read[0] == mass
            np.testing.assert_allclose(read[3], com, atol=1e-8)
            # PyBullet turns the principal axes in single precision.
            np.testing.assert_allclose((axes * read[2]) @ axes.T, inertia, atol=2e-7)
    finally:
        pybullet.disconnect(physicsClientId=client)


@pytest.mark.parametrize("name", ROBOTS)
def test_every_inertia_can_be_a_body_s(name: str):
    for _, _, inertia in bodies(load_robot(name)).values():
        moments = np.linalg.eigvalsh(inertia)
        assert moments[0] > 0.0
        assert moments[0] + moments[1] >= moments[2]


def test_an_impossible_inertia_moves_little_and_a_possible_one_not_at_all():
    links = {link.name: link.inertia_kg_m2 for link in load_robot("panda").links}
    assert physical_inertia(links["panda_link5"]) == links["panda_link5"]
    published = tensor(links["panda_link4"])
    mended = tensor(physical_inertia(links["panda_link4"]))
    assert np.linalg.eigvalsh(mended)[2] == pytest.approx(np.linalg.eigvalsh(published)[2])
    assert np.abs(mended - published).max() < 6e-4


@pytest.mark.parametrize("name", ROBOTS)
def test_the_fingers_open_along_y_of_the_gripper(name: str):
    spec = load_robot(name)
    gripper = spec.gripper
    model = mujoco.MjModel.from_xml_path(str(FOLDER / f"{name}.urdf"))
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    closed = [data.body(link).xpos.copy() for link in gripper.finger_links]
    np.testing.assert_allclose(closed[0], closed[1], atol=1e-12)
    for joint in gripper.finger_joints:
        data.joint(joint).qpos = gripper.finger_stroke_m
    mujoco.mj_kinematics(model, data)
    y_axis = data.body(gripper.base_link).xmat.reshape(3, 3)[:, 1]
    for link, sign, before in zip(gripper.finger_links, (1.0, -1.0), closed, strict=True):
        moved = data.body(link).xpos - before
        np.testing.assert_allclose(moved, sign * gripper.finger_stroke_m * y_axis, atol=1e-12)
