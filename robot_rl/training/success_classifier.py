"""Fits the success classifier to recorded episodes whose steps are labelled."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from robot_rl.data import Episode, open_log
from robot_rl.envs.success.classifier import (
    Classifier,
    ClassifierInfo,
    SuccessNet,
    stack,
    to_tensor,
)
from robot_rl.errors import InvalidInputError, unknown_name
from robot_rl.training.runs import StopFlag, progress
from robot_rl.training.setup import check_seed

_FEWEST = 6
_EVALUATE_EVERY = 100


@dataclass(frozen=True)
class ClassifierConfig:
    """Options of fitting a success classifier."""

    data: str = field(default="", metadata={"help": "recorded episodes with images, whose "
                                            "next.success is the label"})
    out: str = field(default="", metadata={"help": "file of the classifier, e.g. "
                                           "success.safetensors"})
    cameras: tuple[str, ...] = field(default=(), metadata={
        "help": "cameras to look through; all that the data has if not given"})
    size: int = field(default=48, metadata={"help": "height and width [pixels] that images are "
                                            "brought to"})
    steps: int = field(default=1500, metadata={"help": "updates"})
    batch_size: int = field(default=64, metadata={"help": "images of an update, half of them of "
                                                  "success"})
    learning_rate: float = field(default=2e-3, metadata={"help": "of Adam, falling to 0"})
    shift_px: int = field(default=1, metadata={"help": "largest random shift of an image "
                                               "[pixels of size]"})
    light: float = field(default=0.15, metadata={"help": "largest random change of brightness, "
                                                 "contrast and colour"})
    noise: float = field(default=0.02, metadata={"help": "standard deviation of noise on pixels, "
                                                 "which are in [0, 1]"})
    margin: int = field(default=0, metadata={"help": "states to leave out before the first success "
                                             "of an episode, where a person's label comes late"})
    max_false_positives: float = field(default=0.01, metadata={
        "help": "share of images without success that may count as success; the threshold is "
        "chosen so on episodes kept apart"})
    votes: int = field(default=2, metadata={"help": "images that have to agree"})
    window: int = field(default=3, metadata={"help": "the last images among which votes count"})
    held_out: float = field(default=0.2, metadata={"help": "share of the episodes kept apart to "
                                                   "measure; as many again choose the threshold"})
    seed: int = field(default=0, metadata={"help": "seed of the split, the weights and the "
                                           "augmentation"})

    def __post_init__(self) -> None:
        check_seed(self.seed)
        for name, low, high in (("size", 16, 512), ("steps", 1, 10**6), ("batch_size", 2, 4096),
                                ("shift_px", 0, 16), ("margin", 0, 10**6)):
            value = getattr(self, name)
            if not isinstance(value, int) or not low <= value <= high:
                raise InvalidInputError(f"{name} is {value}, should be in [{low}, {high}]")
        for name, least, most in (("learning_rate", 0.0, 1.0), ("max_false_positives", 0.0, 0.5),
                                  ("held_out", 0.0, 0.4)):
            value = getattr(self, name)
            if not least < value <= most:
                raise InvalidInputError(f"{name} is {value}, should be in ({least:g}, {most:g}]")
        for name in ("light", "noise"):
            if not 0.0 <= getattr(self, name) <= 0.9:
                raise InvalidInputError(f"{name} is {getattr(self, name)}, should be in [0, 0.9]")
        if not 1 <= self.votes <= self.window <= 100:
            raise InvalidInputError(
                f"{self.votes} votes in a window of {self.window}: should be 1 <= votes <= window"
            )


@dataclass
class LabelledEpisode:
    """States after each step: ``images`` (T, H, W, C) uint8, ``goal`` (g,), ``label`` (T,) bool."""

    images: NDArray[np.uint8]
    goal: NDArray[np.float32]
    label: NDArray[np.bool_]


def labelled(episode: Episode, cameras: Sequence[str], size: int) -> LabelledEpisode:
    """What ``cameras`` saw in an episode after each step, and the step's label.

    Raises:
        InvalidInputError: a camera is not in it.
    """
    for name in cameras:
        if name not in episode.images:
            raise unknown_name("camera of the recorded episodes", name, episode.images)
    states = np.arange(1, len(episode) + 1)
    seen = [episode.images[name] for name in cameras]
    images = np.stack([
        stack([camera.at(states[k:k + 1])[0] for camera in seen], size, size)
        for k in range(len(states))
    ])
    return LabelledEpisode(images, episode.desired, np.asarray(episode.success, dtype=np.bool_))


def load_labelled(data: str | Path, cameras: Sequence[str], size: int) -> tuple[
    list[LabelledEpisode], tuple[str, ...]
]:
    """Every episode of a dataset, and the cameras that were looked through.

    Raises:
        InvalidInputError: there are no images, or none of that name.
    """
    log = open_log(Path(data))
    names = tuple(cameras) or tuple(sorted(log.info.cameras))
    if not names:
        raise InvalidInputError(
            f"dataset: {data} holds no images; record with cameras (collect --obs image)"
        )
    return [labelled(episode, names, size) for episode in log], names


@dataclass
class Split:
    """Episodes to learn from, to choose the threshold on, and to measure on."""

    learn: list[LabelledEpisode]
    choose: list[LabelledEpisode]
    measure: list[LabelledEpisode]


def split(episodes: Sequence[LabelledEpisode], held_out: float, seed: int) -> Split:
    """Divide episodes at random, those with and without success alike.

    Raises:
        InvalidInputError: there are too few with a success, or too few images without.
    """
    with_success = [e for e in episodes if e.label.any()]
    without = [e for e in episodes if not e.label.any()]
    failures = sum(int((~e.label).sum()) for e in episodes)
    if len(with_success) < _FEWEST or failures < _FEWEST:
        raise InvalidInputError(
            f"a success classifier needs at least {_FEWEST} episodes with a success and images "
            f"without; there are {len(with_success)} such episodes and {failures} such images"
        )
    rng = np.random.default_rng(seed)
    parts = Split([], [], [])
    for group in (with_success, without):
        order = [group[i] for i in rng.permutation(len(group))]
        kept = math.ceil(held_out * len(order)) if len(order) > 2 else 0
        parts.measure += order[:kept]
        parts.choose += order[kept:2 * kept]
        parts.learn += order[2 * kept:]
    return parts


def fit(
    config: ClassifierConfig, *, quiet: bool = False
) -> tuple[Classifier, dict[str, Any]]:
    """Fit a classifier to the episodes of ``config.data``.

    Returns:
        It, and ``episodes``, ``images``, ``measured`` (see :func:`measure`) and ``interrupted``.

    Raises:
        InvalidInputError: the data has no images, no labels, or too few.
    """
    episodes, cameras = load_labelled(config.data, config.cameras, config.size)
    parts = split(episodes, config.held_out, config.seed)
    goals = np.array([episode.goal for episode in episodes])
    varies = goals.shape[1] > 0 and bool((np.ptp(goals, axis=0) > 1e-6).any())
    info = ClassifierInfo(cameras, config.size, config.size, goals.shape[1] if varies else 0,
                          votes=config.votes, window=config.window)
    net, stopped = learn(config, info, parts, quiet)
    classifier = Classifier(info, net)
    threshold = choose_threshold(classifier, parts.choose, config.max_false_positives)
    classifier.info = replace(info, threshold=threshold)
    measured = measure(classifier, parts.measure)
    classifier.info = replace(classifier.info, measured=measured)
    return classifier, {
        "episodes": len(episodes),
        "images": sum(len(episode.label) for episode in episodes),
        "measured": measured,
        "interrupted": stopped,
    }


def _flat(episodes: Sequence[LabelledEpisode], info: ClassifierInfo, margin: int = 0) -> tuple[
    NDArray[np.uint8], NDArray[np.float32], NDArray[np.bool_]
]:
    """Images, goals and labels of all episodes; without the ``margin`` before a first success."""
    kept = []
    for episode in episodes:
        keep = np.ones(len(episode.label), np.bool_)
        if episode.label.any():
            first = int(np.argmax(episode.label))
            keep[max(0, first - margin):first] = False
        kept.append(keep)
    images = np.concatenate([e.images[k] for e, k in zip(episodes, kept, strict=True)])
    labels = np.concatenate([e.label[k] for e, k in zip(episodes, kept, strict=True)])
    goals = np.concatenate([
        np.repeat(e.goal[None, :info.goal_dim], int(k.sum()), 0)
        for e, k in zip(episodes, kept, strict=True)
    ])
    return images, goals, labels


def learn(
    config: ClassifierConfig, info: ClassifierInfo, parts: Split, quiet: bool
) -> tuple[SuccessNet, bool]:
    """A network fitted to ``parts.learn``, and whether it was stopped before its time."""
    images, goals, labels = _flat(parts.learn, info, config.margin)
    if labels.all() or not labels.any():
        raise InvalidInputError("the episodes to learn from show only success, or none")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        net = SuccessNet(images.shape[3], info.height, info.width, info.goal_dim)
    if info.goal_dim:
        net.goal_mean.copy_(torch.from_numpy(goals.mean(0)))
        net.goal_scale.copy_(torch.from_numpy(1.0 / np.maximum(goals.std(0), 1e-3)))
    rng = np.random.default_rng([config.seed, 1])
    generator = torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=config.learning_rate, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    yes, no = np.flatnonzero(labels), np.flatnonzero(~labels)
    target = torch.zeros(2 * (config.batch_size // 2))
    target[: config.batch_size // 2] = 1.0
    recent: deque[float] = deque(maxlen=_EVALUATE_EVERY)
    with StopFlag().watching() as flag, progress(
        config.steps, "classifier", "update", quiet=quiet
    ) as bar:
        for _ in range(config.steps):
            if flag.stop:
                break
            half = config.batch_size // 2
            rows = np.concatenate([rng.choice(yes, half), rng.choice(no, half)])
            batch = augment(to_tensor(images[rows]), config, rng, generator)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                net(batch, torch.from_numpy(goals[rows])), target
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            recent.append(float(loss.detach()))
            if len(recent) == recent.maxlen:
                bar.set_postfix(loss=f"{sum(recent) / len(recent):.3f}", refresh=False)
                recent.clear()
            bar.update()
    return net, flag.stop


def augment(
    images: torch.Tensor,
    config: ClassifierConfig,
    rng: np.random.Generator,
    generator: torch.Generator,
) -> torch.Tensor:
    """Images (B, C, H, W) in [0, 1], each shifted, lit and coloured a little differently."""
    count, channels, height, width = images.shape
    if config.shift_px:
        pad = config.shift_px
        padded = torch.nn.functional.pad(images, (pad,) * 4, mode="replicate")
        rows, columns = rng.integers(0, 2 * pad + 1, (2, count))
        images = torch.stack([
            padded[i, :, r:r + height, c:c + width]
            for i, (r, c) in enumerate(zip(rows, columns, strict=True))
        ])
    if config.light:
        def drawn(*shape: int) -> torch.Tensor:
            return (2.0 * torch.rand(shape, generator=generator) - 1.0) * config.light

        mean = images.mean((1, 2, 3), keepdim=True)
        images = mean + (images - mean) * (1.0 + drawn(count, 1, 1, 1)) + drawn(count, 1, 1, 1)
        images = images * (1.0 + 0.5 * drawn(count, channels, 1, 1))
    if config.noise:
        images = images + config.noise * torch.randn(images.shape, generator=generator)
    return images.clamp(0.0, 1.0)


def choose_threshold(
    classifier: Classifier, episodes: Sequence[LabelledEpisode], max_false_positives: float
) -> float:
    """The lowest threshold of at least 0.5 that no more than this share of images without success
    reaches."""
    if not episodes:
        return 0.5
    images, goals, labels = _flat(episodes, classifier.info)
    scores = classifier.probability(images, goals)[~labels]
    if not len(scores):
        return 0.5
    allowed = int(max_false_positives * len(scores))
    highest = np.sort(scores)[::-1][min(allowed, len(scores) - 1)]
    return float(min(max(0.5, highest + 1e-4), 1.0 - 1e-6))


def measure(classifier: Classifier, episodes: Sequence[LabelledEpisode]) -> dict[str, Any]:
    """How well a classifier does on episodes, image by image and episode by episode.

    By image: ``accuracy``, ``balanced_accuracy``, ``precision``, ``recall``, ``false_positives``
    (share of images without success that count). By episode, after the vote: ``episode_precision``
    and ``episode_recall`` of having succeeded at any time. None where nothing could be counted.
    """
    if not episodes:
        return {"episodes": 0, "images": 0}
    images, goals, labels = _flat(episodes, classifier.info)
    said = classifier.probability(images, goals) >= classifier.info.threshold
    by_image = _rates(labels, said)
    true = np.array([bool(e.label.any()) for e in episodes])
    ends = np.cumsum([len(e.label) for e in episodes])[:-1]
    votes = [_voted(part, classifier.info) for part in np.split(said, ends)]
    by_episode = _rates(true, np.array(votes))
    return {
        "episodes": len(episodes),
        "images": len(labels),
        "success_share": float(labels.mean()),
        **by_image,
        "episode_precision": by_episode["precision"],
        "episode_recall": by_episode["recall"],
    }


def _voted(said: NDArray[np.bool_], info: ClassifierInfo) -> bool:
    counts = np.convolve(said.astype(np.int64), np.ones(info.window, np.int64))[:len(said)]
    return bool((counts >= info.votes).any())


def _rates(true: NDArray[np.bool_], said: NDArray[np.bool_]) -> dict[str, float | None]:
    recall = _share(said[true])
    false = _share(said[~true])
    balanced = None if recall is None or false is None else 0.5 * (recall + 1.0 - false)
    return {
        "accuracy": float((true == said).mean()),
        "balanced_accuracy": balanced,
        "precision": _share(true[said]),
        "recall": recall,
        "false_positives": false,
    }


def _share(values: NDArray[np.bool_]) -> float | None:
    return float(values.mean()) if len(values) else None


def judge_classifier(
    model: str | Path, data: str | Path
) -> dict[str, Any]:
    """Measure a classifier from a file on recorded episodes, all of them."""
    classifier = Classifier.load(model)
    info = classifier.info
    episodes, _ = load_labelled(data, info.cameras, info.height)
    if info.goal_dim and any(len(episode.goal) != info.goal_dim for episode in episodes):
        raise InvalidInputError(
            f"the classifier {model} takes goals of {info.goal_dim} numbers, {data} has others"
        )
    return measure(classifier, episodes)
