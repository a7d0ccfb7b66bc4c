"""A small storm on the safety filter; `benchmarks/filter_storm.py` offers a million commands."""

from __future__ import annotations

import pytest

from benchmarks.storm.run import Storm, result_of

ROBOTS = ("fr3", "panda", "sawyer")


@pytest.mark.parametrize("robot", ROBOTS)
def test_a_small_storm_breaks_no_limit(robot):
    result = result_of(Storm(robot, seed=11, stretch=24).run(1500))
    assert result["violations"] == 0, result["violation_examples"]
    assert result["faults"] == 0, result["fault_examples"]
    assert result["steps"] >= 1500 and result["rows_sent"] > 5000
    assert len(result["offered"]) > 15, "too few kinds"
    assert result["nearest_to_limit"]["acceleration"] > 0.8, "too tame"
    assert result["holds"] and result["rearms"] > 3
    refused = sum(counts.get("refused", 0) for counts in result["outcomes"].values())
    executed = sum(counts.get("executed", 0) for counts in result["outcomes"].values())
    assert refused > 100 and executed > 500
