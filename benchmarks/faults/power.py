"""Recordings and repairs whose power is cut at every step, and what has to hold afterwards.

A recording notes what it promised: ``made`` (the dataset), ``begun`` and ``done`` (an episode),
``gone`` (an episode that is being set aside) and ``rejected`` (one that the operator refused).
After every cut the folder opens without help, holds every promised episode once and to the bit and
no other that is not whole, is judged truthfully by ``verify``, can be recorded into again, and
``repair`` makes of what was interrupted episodes that happened as they say.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robot_rl.data import DatasetWriter, Episode, RecordingOptions, open_log
from robot_rl.data import recording as live_recording
from robot_rl.data.repair import repair
from robot_rl.data.verify import verify
from robot_rl.errors import InvalidInputError

from .disk import Cut, SimulatedDisk, power_cuts
from .samples import INFO, arrays_of, digest, is_beginning, make_episode, play

DATA = "runs/today/data"


@dataclass
class Scenario:
    """``prepare`` makes what is there before, ``run`` does what the power is cut in."""

    name: str
    run: Callable[[SimulatedDisk, Path], None]
    prepare: Callable[[Path], None] = lambda path: None
    check: Callable[[Path, list[Any], bool], None] = field(default=lambda *what: check(*what))


def cuts_of(scenario: Scenario, work: Path, **how: Any) -> Iterator[tuple[Cut, Path]]:
    """Run a scenario below ``work``; yields every state that a power cut leaves, as a folder."""
    root = work / "root"
    root.mkdir(parents=True)
    scenario.prepare(root / DATA)
    disk = SimulatedDisk(root)
    with disk.recording():
        scenario.run(disk, root / DATA)
    seen = set()
    for cut in power_cuts(disk, **how):
        state = (repr(cut.notes), tuple(sorted(cut.tree.items())))
        if state in seen:
            continue  # the same folder and the same promises as after another cut
        seen.add(state)
        built = cut.build(work / "cut")
        yield cut, built / DATA
        shutil.rmtree(built)
    shutil.rmtree(root)


# -- what has to hold ---------------------------------------------------------------------------


def check(path: Path, notes: list[Any], deep: bool = True) -> None:
    """Raise AssertionError unless the folder is as it has to be after a power cut.

    Only a ``deep`` check records on, and repairs what was interrupted.
    """
    kinds: dict[str, list[Any]] = {}
    for kind, what in notes:
        kinds.setdefault(kind, []).append(what)
    if not (path / "dataset.json").exists():
        assert "made" not in kinds, "the dataset is gone"
        check_begins_again(path)
        return
    done = [digest(episode) for episode in kinds.get("done", [])]
    gone = {digest(episode) for episode in kinds.get("gone", [])}
    begun = {digest(episode) for episode in kinds.get("begun", [])}
    found = [digest(episode) for episode in open_log(path)]
    must = [one for one in done if one not in gone]
    count = Counter(found)
    for one in must:
        assert count[one] == 1, f"a promised episode is there {count[one]} times"
    assert [one for one in found if one in set(must)] == must, "episodes changed places"
    for one, times in count.items():
        assert one in begun and times == 1, "an episode is there that never was recorded, or twice"
    rejected = {digest(episode) for episode in kinds.get("rejected", [])}
    assert not rejected & set(found), "a rejected episode is there"
    check_set_aside(path, gone - set(found))
    assert open_log(path).info == INFO
    report = verify(path)
    assert report["ok"], report["errors"]
    assert report["episodes"] == len(found) and report["recording"] is None
    assert report["complete"] == (not report["interrupted"])
    if deep:
        check_goes_on(path, found)
        check_repair(path, found, kinds)


def check_begins_again(path: Path) -> None:
    with DatasetWriter(path, INFO) as writer:
        writer.append(make_episode(999))
    assert [digest(e) for e in open_log(path)] == [digest(make_episode(999))]
    assert verify(path)["complete"]


def check_set_aside(path: Path, missing: set[str]) -> None:
    """What is no longer in the dataset lies beside it."""
    if missing:
        beside = path.parent / "beside"
        (beside / "episodes").mkdir(parents=True)
        shutil.copy(path / "dataset.json", beside)
        for number, file in enumerate(sorted((path / "set_aside").glob("*.mcap"))):
            shutil.copy(file, beside / "episodes" / f"{number:06d}.mcap")
        assert missing <= {digest(e) for e in open_log(beside)}, "what was set aside is lost"


def check_goes_on(path: Path, found: list[str]) -> None:
    with DatasetWriter.extend(path) as writer:
        assert writer.count == len(found)
        writer.append(make_episode(1000))
        play(writer.begin(), make_episode(1001))  # never committed: repair finds it
    assert [digest(e) for e in open_log(path)] == [*found, digest(make_episode(1000))]


def check_repair(path: Path, found: list[str], kinds: dict[str, list[Any]]) -> None:
    result = repair(path)
    assert result["ok"] and result["complete"], result
    after = list(open_log(path))
    assert [digest(e) for e in after[: len(found) + 1]] == [*found, digest(make_episode(1000))]
    known = [*kinds.get("begun", []), make_episode(1001)]
    salvaged = after[len(found) + 1 :]
    assert len(salvaged) == len(result["salvaged"])
    origins = []
    for episode in salvaged:
        assert ".mcap" in episode.metadata["salvaged_from"]
        from_which = [i for i, whole in enumerate(known) if is_beginning(episode, whole)]
        assert from_which, "a salvaged episode never happened"
        origins += from_which
        assert digest(known[from_which[0]]) not in found, "a committed episode was salvaged too"
    assert len(origins) == len(set(origins)), "an episode was salvaged twice"
    assert len(known) - 1 in origins, "what was left in the end was not salvaged"
    again = repair(path)
    assert again["ok"] and not again["salvaged"] and not again["set_aside"]
    assert [digest(e) for e in open_log(path)] == [digest(e) for e in after]


# -- recordings ---------------------------------------------------------------------------------


def append(disk: SimulatedDisk, writer: DatasetWriter, episode: Episode) -> None:
    disk.note(("begun", episode))
    writer.append(episode)
    disk.note(("done", episode))


def record(disk: SimulatedDisk, writer: DatasetWriter, episode: Episode, **how: Any) -> None:
    disk.note(("begun", episode))
    live = writer.begin(episode.metadata)
    play(live, episode, **how)
    live.commit()
    disk.note(("done", episode))


def whole_episodes(disk: SimulatedDisk, path: Path) -> None:
    with DatasetWriter(path, INFO) as writer:
        disk.note(("made", path))
        for seed in range(3):
            append(disk, writer, make_episode(seed))


def live_episodes(disk: SimulatedDisk, path: Path) -> None:
    options = RecordingOptions(image_format="png")
    with DatasetWriter(path, INFO, options=options) as writer:
        disk.note(("made", path))
        record(disk, writer, make_episode(10))
        record(disk, writer, make_episode(11), threads=True)
        rejected = make_episode(12)
        disk.note(("begun", rejected))
        live = writer.begin()
        play(live, rejected, steps=4)
        live.discard()
        disk.note(("rejected", rejected))
        record(disk, writer, make_episode(13, cameras=False))


def small_flushes(disk: SimulatedDisk, path: Path) -> None:
    """Every row is handed to the disk by itself."""
    before = live_recording._FLUSH_BYTES, live_recording._SYNC_BYTES
    live_recording._FLUSH_BYTES, live_recording._SYNC_BYTES = 1, 2000
    try:
        with DatasetWriter(path, INFO) as writer:
            disk.note(("made", path))
            record(disk, writer, make_episode(20, 4))
            record(disk, writer, make_episode(21, 4), threads=True)
    finally:
        live_recording._FLUSH_BYTES, live_recording._SYNC_BYTES = before


def recorded(path: Path, seeds: range = range(3)) -> None:
    with DatasetWriter(_parent(path), INFO) as writer:
        for seed in seeds:
            writer.append(make_episode(seed))


def _parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def noted(disk: SimulatedDisk, seeds: range = range(3)) -> None:
    disk.note(("made", None))
    for seed in seeds:
        disk.note(("begun", make_episode(seed)))
        disk.note(("done", make_episode(seed)))


def extended(disk: SimulatedDisk, path: Path) -> None:
    """An episode is interrupted, the next recording goes on behind it."""
    noted(disk)
    with DatasetWriter.extend(path) as writer:
        begun = make_episode(30)
        disk.note(("begun", begun))
        play(writer.begin(), begun, steps=3)
    with DatasetWriter.extend(path) as writer:
        append(disk, writer, make_episode(31))


def after_a_kill(path: Path) -> None:
    """Three episodes, and a fourth that a killed process left in its place."""
    recorded(path)
    writer = DatasetWriter.extend(path)
    live = writer.begin()
    play(live, make_episode(40), steps=4)
    live._end("interrupted")  # its thread hands over what it has
    left = next((path / "interrupted").iterdir())
    left.rename(path / "episodes" / f".{left.name}")
    writer._live = None
    writer.close()


def extended_after_a_kill(disk: SimulatedDisk, path: Path) -> None:
    noted(disk)
    disk.note(("begun", make_episode(40)))
    with DatasetWriter.extend(path) as writer:
        record(disk, writer, make_episode(41))


def set_aside(disk: SimulatedDisk, path: Path) -> None:
    noted(disk)
    for seed in (1, 2):
        disk.note(("gone", make_episode(seed)))
    writer, kept = DatasetWriter.reopen(path, 1)
    assert len(kept) == 1
    append(disk, writer, make_episode(50))
    writer.close()


# -- repairs ------------------------------------------------------------------------------------


def interrupted(path: Path) -> None:
    """A killed recording in episodes/, another one and rubbish in interrupted/."""
    after_a_kill(path)
    with DatasetWriter.extend(path) as writer:
        play(writer.begin(), make_episode(42), steps=2)
    left = sorted((path / "interrupted").iterdir())
    left[0].rename(path / "episodes" / ".000009.mcap.part")
    (path / "interrupted" / "000007.mcap.part").write_bytes(b"\x89MCAP0\r\n" + bytes(3000))


def damaged(path: Path) -> None:
    """The second of three episodes is damaged behind its third step, the last one at once."""
    before = live_recording._FLUSH_BYTES
    live_recording._FLUSH_BYTES = 1
    try:
        with DatasetWriter(_parent(path), INFO) as writer:
            for seed in range(3):
                live = writer.begin()
                play(live, make_episode(seed))
                live.commit()
    finally:
        live_recording._FLUSH_BYTES = before
    for number, share in ((1, 0.5), (2, 0.01)):
        file = path / "episodes" / f"{number:06d}.mcap"
        content = bytearray(file.read_bytes())
        content[int(len(content) * share)] ^= 0xFF
        file.write_bytes(content)


def damaged_and_nameless(path: Path) -> None:
    damaged(path)
    interrupted_part = path / "episodes" / ".000003.mcap.part"
    shutil.copy(path / "episodes" / "000000.mcap", interrupted_part)
    with open(interrupted_part, "r+b") as file:
        file.truncate(interrupted_part.stat().st_size * 2 // 3)
    (path / "dataset.json").write_bytes(b"{")


def repaired(disk: SimulatedDisk, path: Path) -> None:
    assert repair(path)["ok"]
    disk.note(("repaired", None))


def repair_scenario(prepare: Callable[[Path], None], work: Path) -> Scenario:
    """A repair, after every cut of which another one comes to what an undisturbed one does."""
    before, path = work / "before", work / "after"
    prepare(before)
    whole = {digest(e) for e in _readable(before)}
    shutil.copytree(before, path)
    repair(path)
    expected = sorted(_content(e) for e in open_log(path))
    aside = {p.read_bytes() for p in (path / "set_aside").iterdir()}

    def compare(found: Path, notes: list[Any], deep: bool = True) -> None:
        before = {digest(e) for e in _readable(found)}
        assert whole <= before, "a whole episode is lost"
        if notes:
            assert verify(found)["complete"], "the repair had returned"
        result = repair(found)
        assert result["ok"] and result["complete"], result["errors"]
        assert sorted(_content(e) for e in open_log(found)) == expected
        left = {p.read_bytes() for p in (found / "set_aside").iterdir()}
        assert aside <= left, "an original is lost"

    name = prepare.__name__.replace("_", " ")
    return Scenario(f"repair: {name}", repaired, lambda to: _copy(before, to), compare)


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, _parent(target))


def _content(episode: Episode) -> str:
    return digest(episode) + str(sorted(arrays_of(episode)))


def _readable(path: Path) -> list[Episode]:
    """Episodes that can be read, whatever the description of the dataset says."""
    from robot_rl.data.log import episode_of, list_episodes, read_file

    found = []
    for file in list_episodes(path):
        try:
            found.append(episode_of(read_file(file.path), str(file.path)))
        except InvalidInputError:
            continue
    return found


def scenarios(work: Path) -> list[Scenario]:
    """All of them; ``work`` is a folder for what the checks compare with."""
    found = [
        Scenario("whole episodes", whole_episodes),
        Scenario("live episodes", live_episodes),
        Scenario("live, every row by itself", small_flushes),
        Scenario("interrupted and extended", extended, recorded),
        Scenario("extended after a kill", extended_after_a_kill, after_a_kill),
        Scenario("reopened, episodes set aside", set_aside, recorded),
    ]
    for prepare in (interrupted, damaged, damaged_and_nameless):
        found.append(repair_scenario(prepare, work / prepare.__name__))
    return found
