"""The only door to an arm: limits, workspace box, refusal of bad input, latched holds."""

from robot_rl.safety.filter import Executed, SafetyConfig, SafetyFilter

__all__ = ["Executed", "SafetyConfig", "SafetyFilter"]
