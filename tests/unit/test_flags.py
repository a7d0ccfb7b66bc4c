"""Dataclasses as flags."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Literal

import pytest

from robot_rl.agents import AGENTS, config_class
from robot_rl.cli import commands
from robot_rl.cli.flags import Parser, add_flags, read_flags
from robot_rl.cli.main import main
from robot_rl.data import Relabelling
from robot_rl.errors import InvalidInputError
from robot_rl.training.collect import CollectConfig
from robot_rl.training.demo import DemoConfig
from robot_rl.training.offline import PretrainConfig
from robot_rl.training.online import TrainConfig
from robot_rl.training.setup import EnvChoice


@dataclass
class Options:
    """One field of each kind."""

    text: str = field(default="", metadata={"help": "some text"})
    count: int = field(default=3, metadata={"help": "how many, 50% more"})
    size: float = field(default=0.5, metadata={"help": "how large"})
    switch: bool = field(default=True, metadata={"help": "whether"})
    clip: float | None = field(default=None, metadata={"help": "limit"})
    pair: tuple[float, float] | None = field(default=None, metadata={"help": "two"})
    names: tuple[str, ...] = field(default=("a", "b"), metadata={"help": "several"})
    kind: Literal["one", "two"] = field(default="one", metadata={"help": "which"})
    extra: dict[str, float] = field(default_factory=dict, metadata={"help": "pairs"})
    from_run: str = field(default="", metadata={"help": "renamed", "flag": "--from"})


def read(*words: str, prefix: str = "") -> dict:
    parser = Parser(prog="p")
    add_flags(parser, Options, title="options", prefix=prefix)
    return read_flags(parser.parse_args(list(words)), Options, prefix=prefix)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), {}),
        (("--text", "x"), {"text": "x"}),
        (("--count", "-4"), {"count": -4}),
        (("--size=1e-3",), {"size": 1e-3}),
        (("--switch", "off"), {"switch": False}),
        (("--switch", "TRUE"), {"switch": True}),
        (("--clip", "none"), {"clip": None}),
        (("--clip", "2"), {"clip": 2.0}),
        (("--pair", "-1", "0"), {"pair": [-1.0, 0.0]}),
        (("--names", "x", "y", "z"), {"names": ["x", "y", "z"]}),
        (("--kind", "two"), {"kind": "two"}),
        (("--extra", "a=1", "b=-.5"), {"extra": {"a": 1.0, "b": -0.5}}),
        (("--from", "there"), {"from_run": "there"}),
    ],
)
def test_values_are_read_by_their_type_and_defaults_stay_out(words, expected):
    assert read(*words) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--count", "1.5"), "argument --count: invalid int value: '1.5'"),
        (("--size", "big"), "argument --size: invalid float value: 'big'"),
        (("--switch", "maybe"), "'maybe' is neither true nor false"),
        (("--kind", "three"), "argument --kind: invalid choice: 'three'"),
        (("--extra", "a"), "--extra: 'a' should be name=number"),
        (("--extra", "a=x"), "--extra: 'a=x' should be name=number"),
        (("--text",), "argument --text: expected one argument"),
        (("--nothing",), "unrecognized arguments: --nothing"),
        (("--tex", "x"), "unrecognized arguments: --tex x"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_a_hint(words, message):
    with pytest.raises(InvalidInputError) as caught:
        read(*words)
    text = str(caught.value)
    assert message in text and text.endswith("(see p --help)") and "\n" not in text


def test_a_prefix_keeps_names_apart():
    assert read("--my-count", "9", prefix="my-") == {"count": 9}
    with pytest.raises(InvalidInputError, match="unrecognized arguments: --count"):
        read("--count", "9", prefix="my-")


def test_help_tells_flag_meaning_and_default():
    parser = Parser(prog="p")
    add_flags(parser, Options, title="options")
    text = " ".join(parser.format_help().split())
    for part in ("--text TEXT some text (default: none)", "--count N how many, 50% more (default: "
                 "3)", "--switch true|false whether (default: True)", "(default: a b)",
                 "--kind one|two which (default: one)", "--from TEXT renamed"):
        assert part in text


CONFIGS = [CollectConfig, PretrainConfig, TrainConfig, DemoConfig, EnvChoice, Relabelling,
           commands.EvalConfig, *(config_class(name) for name in AGENTS)]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.__name__)
def test_every_option_has_a_help_text(config):
    for one in dataclasses.fields(config):
        assert len(one.metadata.get("help", "").strip()) > 5, one.name


FLAGS_OF = {
    "collect": [CollectConfig, EnvChoice],
    "pretrain": [PretrainConfig],
    "train": [TrainConfig, EnvChoice],
    "eval": [commands.EvalConfig, EnvChoice],
    "demo": [DemoConfig],
    "list": [],
    "doctor": [],
    "report": [],
}


def test_every_command_is_covered():
    assert {command.name for command in commands.COMMANDS} == set(FLAGS_OF)


@pytest.mark.parametrize("command", list(FLAGS_OF))
def test_help_of_every_command_names_every_flag(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--json" in text and "--quiet" in text
    for config in FLAGS_OF[command]:
        for one in dataclasses.fields(config):
            flag = one.metadata.get("flag", "--" + one.name.replace("_", "-"))
            help_text = " ".join(one.metadata["help"].split())
            assert f" {flag} " in text, flag
            # Long words are broken at hyphens: compare without blanks.
            assert help_text.replace(" ", "") + "(default:" in text.replace(" ", ""), flag
    if command in ("pretrain", "train"):
        for name in Relabelling.NAMES:
            assert f"--relabel-{name} " in text
        assert "--resume RUN" in text
    if command in ("collect", "pretrain", "train", "demo"):
        assert "--overwrite" in text


@pytest.mark.parametrize("agent", list(AGENTS))
@pytest.mark.parametrize("command", ["pretrain", "train"])
def test_help_shows_the_options_of_the_agent_that_is_named(command, agent, capsys):
    with pytest.raises(SystemExit):
        main([command, f"--agent={agent}", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for one in dataclasses.fields(config_class(agent)):
        assert f"--{one.name.replace('_', '-')} " in text, one.name


def test_flags_of_hardware_reach_the_environment(monkeypatch):
    parser = Parser(prog="p")
    add_flags(parser, EnvChoice, title="environment")
    words = ["--task", "Push", "--backend", "ros1", "--rig", "master_uri=http://x:1/?a=b",
             "--rig", "mode=position", "--camera", "front=opencv:0", "side=none",
             "--success", "sensor:contact>0.5", "--goal-image", "goal.png"]
    choice = EnvChoice(**read_flags(parser.parse_args(words), EnvChoice))
    asked = {}
    monkeypatch.setattr("robot_rl.training.setup.make_env",
                        lambda *names, **more: asked.update(more, names=names))
    choice.make(resets="arm", obs="image")
    assert asked["names"] == ("Push", "sawyer", "ros1", "image")
    assert asked["rig_options"] == {"master_uri": "http://x:1/?a=b", "mode": "position"}
    assert asked["camera_sources"] == {"front": "opencv:0", "side": "none"}
    assert asked["cameras"] == ("front",)
    assert (asked["resets"], asked["success"], asked["goal_image"]) == (
        "arm", "sensor:contact>0.5", "goal.png")
    # And a configuration that was written down gives them back.
    assert EnvChoice(**choice.as_dict()) == choice


@pytest.mark.parametrize(("words", "what"), [
    (["--rig", "master_uri"], "--rig 'master_uri' should be KEY=VALUE"),
    (["--camera", "front=opencv:0", "--camera", "front=opencv:1"], "'front' is given twice"),
    (["--camera", "a b=opencv:0"], "should be NAME=SOURCE"),
])
def test_flags_of_hardware_that_are_no_pairs(words, what):
    parser = Parser(prog="p")
    add_flags(parser, EnvChoice, title="environment")
    with pytest.raises(InvalidInputError, match=re.escape(what)):
        parser.parse_args(words)


def test_a_task_from_elsewhere_has_no_rig():
    with pytest.raises(InvalidInputError, match="has no rig"):
        EnvChoice(task="AdroitHandDoor-v1", rig={"robot_ip": "1.2.3.4"}).make()
