"""Run the demonstration: `ros2 launch robot_rl demo.launch.py backend:=pybullet`."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration
from launch_ros.substitutions import ExecutableInPackage


def generate_launch_description() -> LaunchDescription:
    """One process, `robot-rl demo`, with the launch arguments as its options."""
    return LaunchDescription(
        [
            DeclareLaunchArgument("backend", default_value="mujoco", description="Simulator."),
            DeclareLaunchArgument("robot", default_value="sawyer", description="Arm."),
            DeclareLaunchArgument("seed", default_value="0", description="Random seed."),
            DeclareLaunchArgument(
                "mujoco_gl", default_value="egl", description="MuJoCo renders by egl or osmesa."
            ),
            SetEnvironmentVariable("MUJOCO_GL", LaunchConfiguration("mujoco_gl")),
            ExecuteProcess(
                cmd=[
                    ExecutableInPackage("robot-rl", "robot_rl"),
                    "demo",
                    "--backend",
                    LaunchConfiguration("backend"),
                    "--robot",
                    LaunchConfiguration("robot"),
                    "--seed",
                    LaunchConfiguration("seed"),
                ],
                name="demo",
                output="screen",
            ),
        ]
    )
