"""The package `robot_rl`, for pip and for colcon (build type ament_python).

The folders drivers/, sim/ and calibration/ only sort the source tree: the packages inside them
keep their full import names (`robot_rl_drivers` and so on), so nothing generic is installed.
Packages are listed by hand, which colcon's --symlink-install needs for renamed folders;
tests/unit/test_packaging.py compares the list with the tree.
"""

from glob import glob

from setuptools import setup

NAME = "robot_rl"

PACKAGE_DIR = {
    "robot_rl_drivers": "drivers/robot_rl_drivers",
    "robot_rl_sim": "sim/robot_rl_sim",
    "robot_rl_calibration": "calibration/robot_rl_calibration",
}

PACKAGES = [
    "robot_rl",
    "robot_rl.agents",
    "robot_rl.cli",
    "robot_rl.data",
    "robot_rl.data.exporters",
    "robot_rl.data.importers",
    "robot_rl.envs",
    "robot_rl.envs.resets",
    "robot_rl.envs.success",
    "robot_rl.envs.tasks",
    "robot_rl.goals",
    "robot_rl.nets",
    "robot_rl.planning",
    "robot_rl.report",
    "robot_rl.ros",
    "robot_rl.ros.runtime",
    "robot_rl.safety",
    "robot_rl.specs",
    "robot_rl.training",
    "robot_rl_calibration",
    "robot_rl_drivers",
    "robot_rl_drivers.cameras",
    "robot_rl_drivers.franka",
    "robot_rl_drivers.teleop",
    "robot_rl_drivers.sawyer",
    "robot_rl_drivers.sensors",
    "robot_rl_sim",
]

PACKAGE_DATA = {
    "robot_rl": ["py.typed"],
    "robot_rl.specs": ["*.yaml"],
    "robot_rl_sim": ["urdf/*.urdf"],
}

# Where ROS 2 looks: the marker that says the package exists, its manifest, launch files, models.
# resource/urdf is a link to sim/robot_rl_sim/urdf: below a renamed package's own path,
# colcon's --symlink-install would leave links that lead nowhere.
DATA_FILES = [
    ("share/ament_index/resource_index/packages", ["resource/" + NAME]),
    ("share/" + NAME, ["package.xml"]),
    ("share/" + NAME + "/launch", sorted(glob("launch/*.launch.py"))),
    ("share/" + NAME + "/urdf", sorted(glob("resource/urdf/*.urdf"))),
]

REQUIREMENTS = [
    "numpy>=1.24",
    "ruckig>=0.14",
    "torch>=2.4",
    "gymnasium>=1.0",
    "mcap>=1.6",
    "lz4>=4.0",
    "safetensors>=0.4",
    "pyyaml>=6.0",
    "tqdm>=4.60",
]

EXTRAS = {
    "sim": ["mujoco>=3.2,<3.11", "pybullet>=3.2.6"],
    "report": ["matplotlib>=3.7", "tensorboard>=2.14", "av>=12", "opencv-python-headless>=4.8"],
    # Other formats of recorded data, and compressed images.
    "data": [
        "rosbags>=0.11",
        "h5py>=3.10",
        "pyarrow>=15",
        "minari>=0.5",
        "av>=12",
        "opencv-python-headless>=4.8",
    ],
    "external": ["gymnasium-robotics>=1.3"],
    "ros": ["cyclonedds>=11.0", "rosbags>=0.11"],
    "link": ["pyzmq>=25"],
    "cameras": ["pyrealsense2>=2.54", "opencv-python-headless>=4.8"],
    "sensors": ["pyserial>=3.5"],
    "franka": ["franky-control>=1.1"],
    "teleop": ["pyspacemouse>=2.1", "pygame>=2.5"],
    "test": [
        "pytest>=8",
        "pytest-timeout>=2.2",
        "pytest-xdist>=3.5",
        "hypothesis>=6.90",
        "mcap-ros2-support>=0.5",
        "coverage>=7",
        "mutmut>=3.3",
        "stable-baselines3>=2.4",
        "setuptools>=64",
    ],
    "lint": ["ruff>=0.9", "mypy>=1.11", "types-PyYAML", "types-setuptools", "types-tqdm"],
    "bench": ["jax>=0.4.30", "optax>=0.2"],
}
# Everything but the rivals of the benchmarks and the camera's library, which lacks some wheels.
EXTRAS["all"] = sorted(
    {req for name, reqs in EXTRAS.items() if name not in ("bench", "cameras") for req in reqs}
)

setup(
    name=NAME,
    version="0.1.0",
    description="A learning stack for real robot arms: offline pretraining, practice on hardware, "
    "and the same run in simulation",
    license="Apache-2.0",
    python_requires=">=3.10,<3.13",
    packages=PACKAGES,
    package_dir=PACKAGE_DIR,
    package_data=PACKAGE_DATA,
    data_files=DATA_FILES,
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
    zip_safe=False,
    entry_points={
        "console_scripts": ["robot-rl = robot_rl.cli.main:main"],
        "robot_rl.cameras": [
            "find = robot_rl_drivers.cameras:find_sources",
            "make = robot_rl_drivers.cameras:make_camera",
        ],
        "robot_rl.simulated_robots": [
            "franka = robot_rl_sim.crisp:run",
            "intera = robot_rl_sim.intera:run",
        ],
        "robot_rl.teleops": [
            "gamepad = robot_rl_drivers.teleop.gamepad:make",
            "keyboard = robot_rl_drivers.teleop.keyboard:make",
            "scripted = robot_rl_drivers.teleop.scripted:make",
            "spacemouse = robot_rl_drivers.teleop.spacemouse:make",
        ],
        "robot_rl.backends": [
            "mujoco = robot_rl_sim.mujoco_engine:make_rig",
            "pybullet = robot_rl_sim.bullet_engine:make_rig",
            "ros1 = robot_rl_drivers.sawyer.rig:make_rig",
            "ros2 = robot_rl_drivers.franka.rig:make_rig",
            "franky = robot_rl_drivers.franka.direct_rig:make_rig",
        ],
    },
)
