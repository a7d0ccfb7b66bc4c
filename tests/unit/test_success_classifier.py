"""The success classifier: what it learns, how it is measured, kept and looked through."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from robot_rl.cli.main import main
from robot_rl.data import DatasetInfo, DatasetWriter, Images
from robot_rl.envs import make_env
from robot_rl.envs.scripted import ScriptedPolicy
from robot_rl.envs.success.classifier import (
    Classifier,
    ClassifierInfo,
    ClassifierSuccess,
    SuccessNet,
    stack,
)
from robot_rl.errors import InvalidInputError
from robot_rl.interfaces import Frame, SuccessDetector
from robot_rl.training.success_classifier import (
    ClassifierConfig,
    LabelledEpisode,
    augment,
    choose_threshold,
    fit,
    learn,
    measure,
    split,
)


def painted(rng: np.random.Generator, at: float, size: int = 24) -> np.ndarray:
    """A noisy table with a dark square, `at` 0 to 1 of the way to the right."""
    image = np.full((size, size, 3), 170.0) + rng.normal(0.0, 6.0, (size, size, 3))
    left = int(round(at * (size - 6)))
    image[9:15, left:left + 6] = (40.0, 60.0, 90.0)
    return np.clip(image, 0, 255).astype(np.uint8)


def write_painted(path: Path, episode: Any, count: int, seed: int, *, goals: bool = False) -> str:
    """Episodes in which a square moves about; success is within 0.15 of the goal."""
    rng = np.random.default_rng(seed)
    made = []
    for k in range(count):
        steps = 12
        one = episode(steps, k)
        goal = rng.uniform(0.2, 0.8) if goals else 0.5
        places = np.clip(np.cumsum(np.r_[rng.uniform(), rng.normal(0, 0.12, steps)]), 0, 1)
        one.desired = np.array([goal, 0.0], np.float32)
        one.success = np.abs(places[1:] - goal) < 0.15
        frames = np.array([painted(rng, place) for place in places])
        one.images = {"front": Images.each(frames)}
        made.append(one)
    with DatasetWriter(str(path), DatasetInfo.of(made[0], task="Painted")) as writer:
        for one in made:
            writer.append(one)
    return str(path)


def run(capsys: Any, *words: str) -> tuple[int, dict[str, Any]]:
    code = main([*words, "--json", "--quiet"])
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    return code, json.loads(lines[-1]) if lines else {"error": captured.err}


def test_a_classifier_is_trained_tested_and_used_from_the_command_line(
    tmp_path, episode, capsys
):
    data = write_painted(tmp_path / "data", episode, 40, 0)
    later = write_painted(tmp_path / "later", episode, 15, 1)
    out = tmp_path / "made" / "success.safetensors"
    words = ("--data", data, "--out", str(out), "--size", "24", "--steps", "150",
             "--batch-size", "32", "--seed", "1")
    code, said = run(capsys, "classifier", "train", *words)
    assert code == 0
    assert set(said) == {"episodes", "images", "measured", "interrupted", "classifier", "threshold",
                         "cameras"}
    assert (said["episodes"], said["images"], said["cameras"]) == (40, 480, ["front"])
    code, judged = run(capsys, "classifier", "test", "--model", str(out), "--data", later)
    assert code == 0 and judged["images"] == 180
    assert judged["accuracy"] > 0.9 and judged["false_positives"] < 0.08, judged
    classifier = Classifier.load(out)
    assert classifier.info.goal_dim == 0 and classifier.info.measured == said["measured"]
    rng = np.random.default_rng(5)
    shown = [painted(rng, 0.5)]
    camera = SimpleNamespace(name="front", read=lambda age: Frame(shown[0], 0.0))
    detector = ClassifierSuccess({"front": camera}, classifier, votes=2, window=3)
    assert isinstance(detector, SuccessDetector)
    detector.begin(np.array([0.5, 0.0]))
    assert [detector.success() for _ in range(3)] == [False, True, True]
    assert detector.probability > classifier.info.threshold
    shown[0] = painted(rng, 0.0)
    assert [detector.success() for _ in range(3)] == [True, False, False]
    # A larger camera is brought to the size that was learned.
    shown[0] = np.repeat(np.repeat(painted(rng, 0.5), 4, 0), 4, 1)
    detector.begin(np.array([0.5, 0.0]))
    assert [detector.success() for _ in range(2)] == [False, True]


def test_the_same_seed_gives_the_same_classifier_to_the_bit(tmp_path, episode):
    data = write_painted(tmp_path / "data", episode, 15, 3)
    kept = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        config = ClassifierConfig(data=data, size=24, steps=5, batch_size=8, seed=seed)
        fit(config, quiet=True)[0].save(tmp_path / name)
        kept.append((tmp_path / name).read_bytes())
    assert kept[0] == kept[1] != kept[2]


def test_goals_that_vary_are_looked_at(tmp_path, episode):
    data = write_painted(tmp_path / "data", episode, 80, 2, goals=True)
    classifier, said = fit(
        ClassifierConfig(data=data, size=24, steps=300, batch_size=32), quiet=True
    )
    assert classifier.info.goal_dim == 2
    assert said["measured"]["accuracy"] > 0.8, said
    rng = np.random.default_rng(0)
    image = np.repeat(painted(rng, 0.25)[None], 2, 0)
    here, there = classifier.probability(image, np.array([[0.25, 0.0], [0.75, 0.0]]))
    assert here > 0.5 > there
    detector = ClassifierSuccess(
        {"front": SimpleNamespace(name="front", read=lambda age: Frame(image[0], 0.0))}, classifier
    )
    with pytest.raises(InvalidInputError, match="was not told the goal"):
        detector.success()
    with pytest.raises(InvalidInputError, match="goals of 2 finite numbers"):
        detector.begin(np.zeros(3))


def pushed(count: int, seed: int) -> list[LabelledEpisode]:
    """Simulated Push at one goal, by operators of mixed quality, through the front camera."""
    env = make_env("Push", "sawyer", obs="image", cameras=("front",))
    episodes = []
    for k in range(count):
        policy = ScriptedPolicy(env, (0.0, 0.5, 0.9)[k % 3], seed + k)
        env.reset(seed=seed + k, options={"goal": np.array([0.03, 0.02])})
        policy.reset()
        images, labels, done = [], [], False
        while not done:
            observation, _, terminated, truncated, info = env.step(policy.act())
            images.append(observation["observation"])
            labels.append(info["is_success"])
            done = terminated or truncated
        episodes.append(LabelledEpisode(np.array(images), env.goal.astype(np.float32),
                                        np.array(labels)))
    env.close()
    return episodes


def learned(episodes: list[LabelledEpisode], config: ClassifierConfig) -> Classifier:
    parts = split(episodes, config.held_out, config.seed)
    info = ClassifierInfo(("front",), 48, 48)
    net, _ = learn(config, info, parts, quiet=True)
    classifier = Classifier(info, net)
    threshold = choose_threshold(classifier, parts.choose, config.max_false_positives)
    classifier.info = replace(info, threshold=threshold)
    return classifier


def test_push_is_told_from_images_after_few_episodes():
    pytest.importorskip("mujoco")
    classifier = learned(pushed(30, 0), ClassifierConfig(steps=120, batch_size=48))
    measured = measure(classifier, pushed(9, 5000))
    assert measured["accuracy"] > 0.88 and measured["false_positives"] < 0.1, measured


@pytest.mark.slow
def test_push_is_told_from_images_with_few_false_alarms():
    pytest.importorskip("mujoco")
    classifier = learned(pushed(150, 0), ClassifierConfig(steps=800))
    measured = measure(classifier, pushed(60, 5000))
    assert measured["accuracy"] > 0.97 and measured["precision"] > 0.95, measured
    assert measured["recall"] > 0.93 and measured["false_positives"] < 0.025, measured
    assert measured["episode_recall"] > 0.85 and measured["episode_precision"] > 0.85, measured


# -- measuring ----------------------------------------------------------------------------------


class Oracle(Classifier):
    """Says what the first pixel says, in 255ths."""

    def __init__(self, **info: Any) -> None:
        super().__init__(ClassifierInfo(("front",), 16, 16, **info), SuccessNet(3, 16, 16, 0))

    def probability(self, images: Any, goals: Any) -> Any:
        return images[:, 0, 0, 0] / 255.0


def shown(scores: list[float], labels: list[int]) -> LabelledEpisode:
    images = np.zeros((len(scores), 16, 16, 3), np.uint8)
    images[:, 0, 0, 0] = np.round(np.array(scores) * 255)
    return LabelledEpisode(images, np.zeros(0, np.float32), np.array(labels, bool))


def test_measures_are_counted_by_hand():
    oracle = Oracle(threshold=0.5, votes=2, window=3)
    episodes = [
        shown([0.9, 0.1, 0.8, 0.2], [1, 0, 1, 1]),  # two in three: seen
        shown([0.9, 0.1, 0.1, 0.9], [0, 0, 0, 0]),  # two, but not in three
        shown([0.1, 0.9, 0.1], [0, 1, 0]),          # only one: missed
        shown([0.9, 0.9], [0, 0]),                  # two false ones: a false alarm
    ]
    measured = measure(oracle, episodes)
    # 13 images: right are 3 of the 4 successes, wrong are 4 of the 9 others.
    assert measured["images"] == 13 and measured["episodes"] == 4
    assert measured["recall"] == pytest.approx(3 / 4)
    assert measured["false_positives"] == pytest.approx(4 / 9)
    assert measured["precision"] == pytest.approx(3 / 7)
    assert measured["accuracy"] == pytest.approx(8 / 13)
    assert measured["balanced_accuracy"] == pytest.approx(0.5 * (3 / 4 + 5 / 9))
    assert (measured["episode_precision"], measured["episode_recall"]) == (0.5, 0.5)
    assert measure(oracle, []) == {"episodes": 0, "images": 0}
    none = measure(oracle, [shown([0.1], [0])])
    assert none["recall"] is None and none["precision"] is None and none["accuracy"] == 1.0


def test_the_threshold_lets_through_as_many_failures_as_allowed():
    scores = [k / 200 for k in range(100, 200)]
    episodes = [shown(scores, [0] * 100), shown([0.99] * 5, [1] * 5)]
    oracle = Oracle()
    for allowed, kept in ((0.01, 1), (0.1, 10), (0.001, 0)):
        threshold = choose_threshold(oracle, episodes, allowed)
        through = sum(np.round(s * 255) / 255 >= threshold for s in scores)
        assert through == kept
    assert choose_threshold(oracle, [shown([0.01] * 50, [0] * 50)], 0.01) == 0.5
    assert choose_threshold(oracle, [shown([1.0] * 50, [0] * 50)], 0.01) < 1.0


def test_episodes_are_split_whole_and_in_kind():
    episodes = [shown([0.0] * 3, [0, k % 2, 0]) for k in range(40)]
    parts = split(episodes, 0.2, 0)
    groups = (parts.learn, parts.choose, parts.measure)
    assert [len(group) for group in groups] == [24, 8, 8]
    assert len({id(e) for group in groups for e in group}) == 40
    assert [sum(bool(e.label.any()) for e in group) for group in groups] == [12, 4, 4]
    with pytest.raises(InvalidInputError, match="at least 6 episodes with a success"):
        split(episodes[:10], 0.2, 0)


def test_augmentation_keeps_images_images():
    config = ClassifierConfig(shift_px=2, light=0.3, noise=0.05)
    images = torch.rand(16, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    same = augment(images, ClassifierConfig(shift_px=0, light=0.0, noise=0.0),
                   np.random.default_rng(0), torch.Generator())
    assert torch.equal(same, images)
    made = augment(images, config, np.random.default_rng(0), torch.Generator().manual_seed(1))
    assert made.shape == images.shape and 0.0 <= float(made.min()) <= float(made.max()) <= 1.0
    assert not torch.equal(made, images)
    shifted = augment(images, ClassifierConfig(shift_px=1, light=0.0, noise=0.0),
                      np.random.default_rng(3), torch.Generator())
    inner = images[:, :, 1:-1, 1:-1]
    for k in range(16):
        assert any(torch.equal(shifted[k, :, 1 + r:19 + r, 1 + c:19 + c], inner[k])
                   for r in (-1, 0, 1) for c in (-1, 0, 1))


def test_images_are_averaged_down():
    image = np.zeros((32, 32, 3), np.uint8)
    image[:2, :2] = 100
    small = stack([image, image], 16, 16)
    assert small.shape == (16, 16, 6) and small[0, 0].tolist() == [100] * 6
    image[1, 1] = 0
    assert stack([image], 16, 16)[0, 0].tolist() == [75] * 3
    with pytest.raises(InvalidInputError, match="uint8"):
        stack([image.astype(float)], 16, 16)


# -- files and refusals -------------------------------------------------------------------------


def test_a_classifier_file_holds_what_it_is(tmp_path):
    torch.manual_seed(0)
    made = Classifier(ClassifierInfo(("a", "b"), 20, 24, 2, threshold=0.7, votes=3, window=4,
                                     measured={"accuracy": 0.9}), SuccessNet(6, 20, 24, 2))
    path = tmp_path / "c.safetensors"
    made.save(path)
    back = Classifier.load(path)
    assert back.info == made.info and back.channels == 6
    images = np.random.default_rng(0).integers(0, 256, (5, 20, 24, 6)).astype(np.uint8)
    goals = np.random.default_rng(1).normal(size=(5, 2))
    np.testing.assert_array_equal(back.probability(images, goals), made.probability(images, goals))


@pytest.mark.parametrize("change", ["empty", "cut", "noise", "other", "nan", "sizes"])
def test_a_damaged_classifier_is_one_line(tmp_path, change):
    from safetensors.torch import save_file

    path = tmp_path / "c.safetensors"
    made = Classifier(ClassifierInfo(("a",), 16, 16), SuccessNet(3, 16, 16, 0))
    if change == "nan":
        with torch.no_grad():
            made.net.sharpness.fill_(float("nan"))
    made.save(path)
    whole = path.read_bytes()
    if change == "empty":
        path.write_bytes(b"")
    elif change == "cut":
        path.write_bytes(whole[:-100])
    elif change == "noise":
        path.write_bytes(bytes(200))
    elif change == "other":
        save_file({"x": torch.zeros(3)}, path)
    elif change == "sizes":
        path.write_bytes(whole.replace(b'\\"height\\": 16', b'\\"height\\": 99'))
        assert path.read_bytes() != whole
    with pytest.raises(InvalidInputError, match=r"classifier: .* is not one") as caught:
        Classifier.load(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(InvalidInputError, match="does not exist"):
        Classifier.load(tmp_path / "none")


def test_cameras_that_do_not_fit_are_named():
    classifier = Classifier(ClassifierInfo(("front",), 16, 16), SuccessNet(3, 16, 16, 0))
    with pytest.raises(InvalidInputError, match=r"unknown camera .*'front'.*valid: side"):
        ClassifierSuccess({"side": SimpleNamespace(name="side")}, classifier)
    grey = SimpleNamespace(read=lambda age: Frame(np.zeros((16, 16, 1), np.uint8), 0.0))
    with pytest.raises(InvalidInputError, match="takes 3 colour channels"):
        ClassifierSuccess({"front": grey}, classifier).success()


def test_data_that_cannot_teach_is_refused(tmp_path, episode, dataset_of, capsys):
    blind = dataset_of(tmp_path / "blind", [episode(5, k) for k in range(8)])
    painted_data = write_painted(tmp_path / "painted", episode, 3, 0)
    out = str(tmp_path / "c.safetensors")
    for words, says in (
        (["--data", blind, "--out", out], "holds no images"),
        (["--data", painted_data, "--out", out], "needs at least 6 episodes"),
        (["--data", painted_data, "--out", out, "--cameras", "top"], "valid: front"),
        (["--data", painted_data], "needs --out"),
        (["--data", str(tmp_path / "none"), "--out", out], "does not exist"),
        (["--data", painted_data, "--out", out, "--votes", "4", "--window", "3"], "votes"),
        (["--data", painted_data, "--out", out, "--steps", "0"], "steps is 0"),
    ):
        code, said = run(capsys, "classifier", "train", *words)
        assert code == 2 and says in said["error"], (words, said)
        assert not Path(out).exists()
    assert main(["classifier"]) == 2
