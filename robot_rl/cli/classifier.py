"""``robot-rl classifier``: a success classifier from recorded episodes, and how good it is."""

from __future__ import annotations

import argparse
from typing import Any

from robot_rl.cli.commands import Command, Outcome, group
from robot_rl.cli.flags import Parser, add_flags, read_flags
from robot_rl.errors import InvalidInputError
from robot_rl.training.compute import set_threads
from robot_rl.training.success_classifier import ClassifierConfig, fit, judge_classifier


def _train_arguments(parser: Parser) -> None:
    add_flags(parser, ClassifierConfig, title="classifier")


def _train_run(args: argparse.Namespace) -> Outcome:
    config = ClassifierConfig(**read_flags(args, ClassifierConfig))
    for name in ("data", "out"):
        if not getattr(config, name):
            raise InvalidInputError(f"a success classifier needs --{name}")
    set_threads(1, "cpu")
    classifier, values = fit(config, quiet=args.quiet)
    classifier.save(config.out)
    values["classifier"] = config.out
    values["threshold"] = classifier.info.threshold
    values["cameras"] = list(classifier.info.cameras)
    text = (f"classifier {config.out} from {values['images']} images of {values['episodes']} "
            f"episodes\n{_said(values['measured'])}")
    return Outcome(values, text, 130 if values["interrupted"] else 0)


def _test_arguments(parser: Parser) -> None:
    parser.add_argument("--model", metavar="FILE", required=True, help="file of the classifier")
    parser.add_argument("--data", metavar="DIR", required=True,
                        help="recorded episodes with images, whose next.success is the label")


def _test_run(args: argparse.Namespace) -> Outcome:
    set_threads(1, "cpu")
    measured = judge_classifier(args.model, args.data)
    return Outcome(measured, _said(measured))


def _said(measured: dict[str, Any]) -> str:
    if not measured["images"]:
        return "no episodes were kept apart to measure it"
    shown = {
        name: "none" if measured[name] is None else f"{measured[name]:.3f}"
        for name in ("accuracy", "precision", "recall", "false_positives", "episode_precision",
                     "episode_recall")
    }
    return (f"on {measured['episodes']} episodes apart: accuracy {shown['accuracy']}, precision "
            f"{shown['precision']}, recall {shown['recall']}, false positives "
            f"{shown['false_positives']}; of whole episodes, after the vote: precision "
            f"{shown['episode_precision']}, recall {shown['episode_recall']}")


COMMAND = group(
    "classifier", "success from camera images: train a classifier, or test one",
    "A small network that tells from the cameras' images whether the task is done.\n"
    "It learns from recorded episodes whose steps are labelled (next.success), e.g. by `record`.",
    Command(
        "train", "fit a classifier to recorded episodes",
        "Fit a classifier; episodes kept apart choose its threshold, others measure it.",
        _train_arguments, _train_run,
        "example:\n  robot-rl collect --task Push --obs image --quality 0.6 --episodes 300 "
        "--out data/push\n"
        "  robot-rl classifier train --data data/push --steps 3000 --out success.safetensors",
    ),
    Command(
        "test", "measure a classifier on recorded episodes",
        "Say how often a classifier is right on recorded episodes, all of them.",
        _test_arguments, _test_run,
        "example:\n  robot-rl classifier test --model success.safetensors --data data/later",
    ),
)
