"""Replay buffers whose numbers say where they come from."""

from __future__ import annotations

import numpy as np

from robot_rl.data import Images, Replay

DISCOUNT = 0.9


def near(achieved, desired):
    """0 where the goals are within 3 of each other, -1 elsewhere."""
    return (np.abs(achieved - desired).max(axis=-1) <= 3.0).astype(np.float64) - 1.0


def filled(episode, lengths, relabelling=None, *, terminated=(), capacity=1024) -> Replay:
    replay = Replay(4, 2, 3, discount=DISCOUNT, relabelling=relabelling, reward=near,
                    capacity=capacity)
    return replay.add_all(
        episode(steps, number, terminated=number in terminated)
        for number, steps in enumerate(lengths)
    )


def source(row) -> tuple[int, int]:
    """Which episode and step the numbers of an observation say they are from."""
    value = float(row[0])
    return int(value // 1000), int(value % 1000)


def check_batch(batch, lengths, terminated=()) -> None:
    """Everything in a batch but the goals comes from one step of one episode."""
    for i in range(len(batch["reward"])):
        number, step = source(batch["observation"][i])
        assert 0 <= step < lengths[number], "a last row is no transition"
        assert source(batch["next_observation"][i]) == (number, step + 1)
        assert (batch["action"][i] == 1000 * number + step + 0.5).all()
        ends = number in terminated and step == lengths[number] - 1
        assert batch["discount"][i] == np.float32(0.0 if ends else DISCOUNT)


SHAPE = (4, 6, 3)


def seen(episode, steps, number, per_state=1, spare=0):
    """An episode with frames whose pixels say 40 x episode + frame; every ``per_state`` states
    share one, and ``spare`` frames nobody saw lie in between."""
    one = episode(steps, number)
    index = (np.arange(steps + 1) // per_state) * (1 + spare)
    frames = np.empty((index[-1] + 1, *SHAPE), np.uint8)
    frames[:] = (40 * number + np.arange(len(frames)))[:, None, None, None]
    one.images = {"front": Images(frames, index, np.zeros(len(frames)))}
    return one


def check_images(batch, per_state=1, spare=0):
    for key, rows in (("images", "observation"), ("next_images", "next_observation")):
        images = batch[key]["front"]
        assert images.dtype == np.uint8 and images.shape == (len(batch["reward"]), *SHAPE)
        assert images.flags.c_contiguous
        number, step = batch[rows][:, 0] // 1000, batch[rows][:, 0] % 1000
        expected = (40 * number + step // per_state * (1 + spare)).astype(np.uint8)
        assert (images == expected[:, None, None, None]).all()
