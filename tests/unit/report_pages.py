"""What the tests of reports read and draw."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

av = pytest.importorskip("av")


HOSTILE = '<script>alert("1")</script> & \'"><img src=x onerror=alert(2)>'


class Page(HTMLParser):
    """What a page refers to, its tags, headings and visible text."""

    VOID = {"meta", "img", "source", "br", "link", "input"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"tags left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        for name in ("src", "srcset", "href", "poster", "data", "action", "background"):
            if name in found:
                self.urls.append(found[name] or "")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split()).replace("\u202f", " ")

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def read_page(path: Path) -> Page:
    """Parse a page and check what holds for every page."""
    text = path.read_text()
    page = Page(text)
    assert all(url.startswith("data:") for url in page.urls), "something is fetched from outside"
    assert not {"script", "iframe", "link", "object", "embed", "form"} & {t for t, _ in page.tags}
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    style = text[text.index("<style>"):text.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert "default-src 'none'" in text
    assert all(attrs.get("alt") for attrs in page.all("img"))
    assert all(attrs.get("aria-label") for attrs in page.all("video"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert page.all("html")[0]["lang"] == "en"
    return page


def content(url: str) -> bytes:
    return base64.b64decode(url.partition("base64,")[2], validate=True)


def moving_square(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    frames = []
    for i in range(count):
        frame = np.full((height, width, 3), 200, np.uint8)
        frame[8:24, 2 * i:2 * i + 16] = (200, 30, 30)
        frames.append(frame)
    return frames


def decode(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


class Stub(gymnasium.Env[Any, Any]):
    """Five steps; succeeds from the third on; draws a square."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, image: Any = "square", fps: int = 10, steps: int = 5) -> None:
        self.image, self.steps = image, steps
        self.metadata = {**self.metadata, "render_fps": fps}
        self.observation_space = spaces.Dict(
            observation=spaces.Box(-1, 1, (3,), np.float32),
            achieved_goal=spaces.Box(-1, 1, (2,), np.float32),
            desired_goal=spaces.Box(-1, 1, (2,), np.float32),
        )
        self.action_space = spaces.Box(-1.0, 1.0, (3,), np.float32)
        self.seeds: list[int | None] = []
        self.closed = False

    def _out(self) -> tuple[dict[str, Any], dict[str, Any]]:
        observation = {"observation": np.zeros(3, np.float32),
                       "achieved_goal": np.zeros(2, np.float32),
                       "desired_goal": np.zeros(2, np.float32)}
        return observation, {"is_success": self.t >= 3, "distance": 0.5 - 0.1 * self.t,
                             "executed_action": np.zeros(3, np.float32)}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.seeds.append(seed)
        self.t = 0
        return self._out()

    def step(self, action: Any) -> Any:
        self.t += 1
        observation, info = self._out()
        return observation, -1.0, False, self.t >= self.steps, info

    def render(self) -> Any:
        if isinstance(self.image, Exception):
            raise self.image
        return moving_square(1, 100, 100)[0] if isinstance(self.image, str) else self.image

    def close(self) -> None:
        self.closed = True


def lines(figure: Any, axes: int = 0) -> dict[str, Any]:
    return {str(line.get_label()): line for line in figure.axes[axes].get_lines()}
