"""The only door to an arm: limits, workspace box, refusal of bad input, latched holds."""

from robot_rl.safety.config import Executed, SafetyConfig, SafetyCounters
from robot_rl.safety.filter import SafetyFilter
from robot_rl.safety.latch import Latch
from robot_rl.safety.watchdog import Watchdog

__all__ = ["Executed", "Latch", "SafetyConfig", "SafetyCounters", "SafetyFilter", "Watchdog"]
