"""Networks: flat parameters, a dense network with a hand-written gradient, the policy, Adam."""

from __future__ import annotations

from robot_rl.nets.adam import FlatAdam
from robot_rl.nets.flat import FlatParameters
from robot_rl.nets.mlp import MLP
from robot_rl.nets.normalizer import Normalizer
from robot_rl.nets.policy import GaussianPolicy

__all__ = ["MLP", "FlatAdam", "FlatParameters", "GaussianPolicy", "Normalizer"]
