"""Definitions of the messages, services and actions that the type store of `rosbags` lacks.

With ROS 2 installed the installed packages count and none of these are used. They are positional
on the wire: a robot whose packages lay a type out in another order cannot be read with them.
Layouts are those of Jazzy, except for what ``HUMBLE_*`` replaces where ``ROS_DISTRO`` is
``humble``; franka_msgs are those of franka_ros2 since 0.1.14.
"""

from __future__ import annotations

MESSAGES: dict[str, str] = {
    "control_msgs/msg/GripperCommand": "float64 position\nfloat64 max_effort",
    "controller_manager_msgs/msg/ChainConnection": "string name\nstring[] reference_interfaces",
    "controller_manager_msgs/msg/ControllerState": """\
string name
string state
string type
bool is_async
uint16 update_rate
string[] claimed_interfaces
string[] required_command_interfaces
string[] required_state_interfaces
bool is_chainable
bool is_chained
string[] exported_state_interfaces
string[] reference_interfaces
controller_manager_msgs/ChainConnection[] chain_connections""",
    "franka_msgs/msg/GraspEpsilon": "float64 inner\nfloat64 outer",
    "franka_msgs/msg/CollisionIndicators": """\
geometry_msgs/Vector3 is_cartesian_linear_collision
geometry_msgs/Vector3 is_cartesian_angular_collision
geometry_msgs/Vector3 is_cartesian_linear_contact
geometry_msgs/Vector3 is_cartesian_angular_contact
float64[7] is_joint_collision
float64[7] is_joint_contact""",
    "franka_msgs/msg/Elbow": """\
float64[2] position
float64[2] desired_position
float64[2] commanded_position
float64[2] commanded_velocity
float64[2] commanded_acceleration""",
    "franka_msgs/msg/Errors": "\n".join(
        f"bool {name}"
        for name in (
            "joint_position_limits_violation",
            "cartesian_position_limits_violation",
            "self_collision_avoidance_violation",
            "joint_velocity_violation",
            "cartesian_velocity_violation",
            "force_control_safety_violation",
            "joint_reflex",
            "cartesian_reflex",
            "max_goal_pose_deviation_violation",
            "max_path_pose_deviation_violation",
            "cartesian_velocity_profile_safety_violation",
            "joint_position_motion_generator_start_pose_invalid",
            "joint_motion_generator_position_limits_violation",
            "joint_motion_generator_velocity_limits_violation",
            "joint_motion_generator_velocity_discontinuity",
            "joint_motion_generator_acceleration_discontinuity",
            "cartesian_position_motion_generator_start_pose_invalid",
            "cartesian_motion_generator_elbow_limit_violation",
            "cartesian_motion_generator_velocity_limits_violation",
            "cartesian_motion_generator_velocity_discontinuity",
            "cartesian_motion_generator_acceleration_discontinuity",
            "cartesian_motion_generator_elbow_sign_inconsistent",
            "cartesian_motion_generator_start_elbow_invalid",
            "cartesian_motion_generator_joint_position_limits_violation",
            "cartesian_motion_generator_joint_velocity_limits_violation",
            "cartesian_motion_generator_joint_velocity_discontinuity",
            "cartesian_motion_generator_joint_acceleration_discontinuity",
            "cartesian_position_motion_generator_invalid_frame",
            "force_controller_desired_force_tolerance_violation",
            "controller_torque_discontinuity",
            "start_elbow_sign_inconsistent",
            "communication_constraints_violation",
            "power_limit_violation",
            "joint_p2p_insufficient_torque_for_planning",
            "tau_j_range_violation",
            "instability_detected",
        )
    ),
    "franka_msgs/msg/FrankaRobotState": """\
uint8 ROBOT_MODE_OTHER=0
uint8 ROBOT_MODE_IDLE=1
uint8 ROBOT_MODE_MOVE=2
uint8 ROBOT_MODE_GUIDING=3
uint8 ROBOT_MODE_REFLEX=4
uint8 ROBOT_MODE_USER_STOPPED=5
uint8 ROBOT_MODE_AUTOMATIC_ERROR_RECOVERY=6
std_msgs/Header header
franka_msgs/CollisionIndicators collision_indicators
sensor_msgs/JointState measured_joint_state
sensor_msgs/JointState desired_joint_state
sensor_msgs/JointState measured_joint_motor_state
float64[7] ddq_d
float64[7] dtau_j
sensor_msgs/JointState tau_ext_hat_filtered
franka_msgs/Elbow elbow
geometry_msgs/WrenchStamped k_f_ext_hat_k
geometry_msgs/WrenchStamped o_f_ext_hat_k
geometry_msgs/InertiaStamped inertia_ee
geometry_msgs/InertiaStamped inertia_load
geometry_msgs/InertiaStamped inertia_total
geometry_msgs/PoseStamped o_t_ee
geometry_msgs/PoseStamped o_t_ee_d
geometry_msgs/PoseStamped o_t_ee_c
geometry_msgs/PoseStamped f_t_ee
geometry_msgs/PoseStamped ee_t_k
geometry_msgs/TwistStamped o_dp_ee_d
geometry_msgs/TwistStamped o_dp_ee_c
geometry_msgs/AccelStamped o_ddp_ee_c
float64 time
float64 control_command_success_rate
uint8 robot_mode
franka_msgs/Errors current_errors
franka_msgs/Errors last_motion_errors""",
}

# Name: (request, response).
SERVICES: dict[str, tuple[str, str]] = {
    "std_srvs/srv/Empty": ("", ""),
    "std_srvs/srv/Trigger": ("", "bool success\nstring message"),
    "std_srvs/srv/SetBool": ("bool data", "bool success\nstring message"),
    "action_msgs/srv/CancelGoal": (
        "action_msgs/GoalInfo goal_info",
        """\
int8 ERROR_NONE=0
int8 ERROR_REJECTED=1
int8 ERROR_UNKNOWN_GOAL_ID=2
int8 ERROR_GOAL_TERMINATED=3
int8 return_code
action_msgs/GoalInfo[] goals_canceling""",
    ),
    "rcl_interfaces/srv/GetParameters": (
        "string[] names", "rcl_interfaces/ParameterValue[] values"
    ),
    "rcl_interfaces/srv/SetParameters": (
        "rcl_interfaces/Parameter[] parameters",
        "rcl_interfaces/SetParametersResult[] results",
    ),
    "rcl_interfaces/srv/GetParameterTypes": ("string[] names", "uint8[] types"),
    "rcl_interfaces/srv/SetParametersAtomically": (
        "rcl_interfaces/Parameter[] parameters", "rcl_interfaces/SetParametersResult result"
    ),
    "rcl_interfaces/srv/DescribeParameters": (
        "string[] names", "rcl_interfaces/ParameterDescriptor[] descriptors"
    ),
    "rcl_interfaces/srv/ListParameters": (
        "uint64 DEPTH_RECURSIVE=0\nstring[] prefixes\nuint64 depth",
        "rcl_interfaces/ListParametersResult result",
    ),
    "controller_manager_msgs/srv/ListControllers": (
        "", "controller_manager_msgs/ControllerState[] controller"
    ),
    "controller_manager_msgs/srv/SwitchController": (
        """\
int32 BEST_EFFORT=1
int32 STRICT=2
string[] activate_controllers
string[] deactivate_controllers
int32 strictness
bool activate_asap
builtin_interfaces/Duration timeout""",
        "bool ok",
    ),
}

# Name: (goal, result, feedback).
ACTIONS: dict[str, tuple[str, str, str]] = {
    "control_msgs/action/GripperCommand": (
        "control_msgs/GripperCommand command",
        "float64 position\nfloat64 effort\nbool stalled\nbool reached_goal",
        "float64 position\nfloat64 effort\nbool stalled\nbool reached_goal",
    ),
    "franka_msgs/action/ErrorRecovery": ("", "", ""),
    "franka_msgs/action/Homing": ("", "bool success\nstring error", "float64 current_width"),
    "franka_msgs/action/Move": (
        "float64 width\nfloat64 speed", "bool success\nstring error", "float64 current_width"
    ),
    "franka_msgs/action/Grasp": (
        "float64 width\nfranka_msgs/GraspEpsilon epsilon\nfloat64 speed\nfloat64 force",
        "bool success\nstring error",
        "float64 current_width",
    ),
}

HUMBLE_MESSAGES: dict[str, str] = {
    "controller_manager_msgs/msg/ControllerState": """\
string name
string state
string type
string[] claimed_interfaces
string[] required_command_interfaces
string[] required_state_interfaces
bool is_chainable
bool is_chained
string[] reference_interfaces
controller_manager_msgs/ChainConnection[] chain_connections""",
}

HUMBLE_SERVICES: dict[str, tuple[str, str]] = {
    "controller_manager_msgs/srv/SwitchController": (
        """\
int32 BEST_EFFORT=1
int32 STRICT=2
string[] activate_controllers
string[] deactivate_controllers
string[] start_controllers
string[] stop_controllers
int32 strictness
bool start_asap
bool activate_asap
builtin_interfaces/Duration timeout""",
        "bool ok",
    ),
}

# Later releases put more fields behind those known here; what is known can still be read.
APPENDED = frozenset({"controller_manager_msgs/srv/SwitchController_Response"})
