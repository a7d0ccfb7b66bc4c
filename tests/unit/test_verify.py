"""verify tells the truth, repair loses nothing."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks.faults.mcap_surgery import join, metadata_of, signed_metadata, split
from benchmarks.faults.samples import INFO, digest, is_beginning, make_episode, play
from robot_rl.data import (
    DatasetInfo,
    DatasetWriter,
    RecordingOptions,
    load_dataset,
    open_log,
    recording,
)
from robot_rl.data.repair import repair
from robot_rl.data.verify import verify
from robot_rl.errors import InvalidInputError


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """Four episodes, recorded as they happened, each row in a chunk of its own."""
    with monkeypatch.context() as patch:
        patch.setattr(recording, "_FLUSH_BYTES", 1)
        with DatasetWriter(tmp_path / "data", INFO) as writer:
            for seed in range(4):
                live = writer.begin({"seed": seed})
                play(live, make_episode(seed))
                live.commit()
    return tmp_path / "data"


def episode_file(data: Path, number: int) -> Path:
    return data / "episodes" / f"{number:06d}.mcap"


def damage(file: Path, share: float) -> bytes:
    content = bytearray(file.read_bytes())
    content[int(len(content) * share)] ^= 0x10
    file.write_bytes(content)
    return bytes(content)


def digests(data: Path) -> list[str]:
    return [digest(episode) for episode in open_log(data)]


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


WHOLE = [digest(make_episode(seed)) for seed in range(4)]


# -- verify -------------------------------------------------------------------------------------


def test_a_whole_dataset(data):
    before, calls = everything(data), []
    report = verify(data, progress=lambda done, total: calls.append((done, total)))
    assert report == {"path": str(data), "ok": True, "errors": [], "warnings": [], "episodes": 4,
                      "steps": 24, "complete": True, "recording": None, "interrupted": []}
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)] and everything(data) == before
    json.dumps(report)


@pytest.mark.parametrize("share", [0.001, 0.02, 0.3, 0.6, 0.8, 0.97, 0.9999])
def test_any_damaged_byte_is_found(data, share):
    damage(episode_file(data, 2), share)
    report = verify(data)
    assert not report["ok"] and not report["complete"] and len(report["errors"]) == 1
    assert "000002.mcap: " in report["errors"][0] and "data repair" in report["errors"][0]


def test_every_region_of_a_file_is_covered(data):
    file = episode_file(data, 1)
    content = file.read_bytes()
    for at in range(0, len(content), 97):
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert not verify(data)["ok"], f"byte {at} of {len(content)}"


def test_a_truncated_an_empty_and_a_longer_file(data):
    file = episode_file(data, 0)
    content = file.read_bytes()
    for changed in (content[:-1], content[: len(content) // 2], b"", content + b"x"):
        file.write_bytes(changed)
        report = verify(data)
        assert not report["ok"] and "000000.mcap" in report["errors"][0]
        assert report["episodes"] in (3, 4)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"success": None}, "success is"), ({"return": 1e9}, "return is"),
     ({"ended": "never"}, "ended is"), ({"steps": 5}, "6 steps are there, 5 were committed"),
     ({"frames": {"front": 6}}, "frames of camera wrist are there")])
def test_a_commit_that_is_not_so(data, change, said):
    file = episode_file(data, 0)
    records = split(file.read_bytes())
    for at, (opcode, content) in enumerate(records):
        if opcode == 0x0C and metadata_of(content)[0] == "robot_rl.commit":
            value = {**json.loads(metadata_of(content)[1]["json"]), **change}
            records[at] = (opcode, signed_metadata("robot_rl.commit", json.dumps(value)))
    file.write_bytes(join(records))
    report = verify(data)
    assert not report["ok"] and any(said in error for error in report["errors"]), report["errors"]


def test_sizes_that_dataset_json_does_not_say(data):
    raw = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps({**raw, "goal_dim": 3}))
    report = verify(data)
    assert len(report["errors"]) == 4 and "dataset.json says" in report["errors"][0]


def test_numbers_have_no_gaps(data):
    episode_file(data, 1).unlink()
    report = verify(data)
    assert report["errors"] == [f"{data / 'episodes'}: episodes 1 are missing; put them back, or "
                                f"`robot-rl data repair {data}` takes note of it"]
    (data / "set_aside").mkdir()
    (data / "set_aside" / "1-000001.mcap").write_bytes(b"")
    assert verify(data)["ok"]


def test_what_was_set_aside_leaves_no_gap(data):
    writer, _ = DatasetWriter.reopen(data, 2)
    writer.close()
    with DatasetWriter.extend(data) as writer:
        writer.append(make_episode(9))
    assert verify(data)["ok"] and sorted(os.listdir(data / "set_aside")) == [
        "000002.mcap", "000003.mcap"]


def test_strays_are_warned_of(data):
    (data / "notes.txt").write_text("")
    (data / "episodes" / "copy of 1.mcap").write_bytes(b"")
    (data / "episodes" / "000009.mcap").symlink_to(episode_file(data, 0))
    (data / ".cache").mkdir()
    report = verify(data)
    assert report["ok"] and report["complete"] and len(report["warnings"]) == 3
    assert "notes.txt does not belong to a dataset" in report["warnings"][2]


def test_a_running_recording_is_no_error(data):
    writer = DatasetWriter.extend(data)
    play(writer.begin(), make_episode(5), steps=2)
    report = verify(data)
    assert report["ok"] and report["complete"] and report["interrupted"] == []
    assert report["recording"] == str(data / "episodes" / ".000004.mcap.part")
    writer.close()
    report = verify(data)
    assert report["ok"] and not report["complete"] and report["recording"] is None
    assert report["interrupted"] == [str(data / "interrupted" / "000004.mcap.part")]
    assert "an episode that was never finished" in report["warnings"][0]


def test_no_dataset_and_other_formats(tmp_path, data):
    with pytest.raises(InvalidInputError, match="does not exist"):
        verify(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    for call in (verify, repair):
        with pytest.raises(InvalidInputError, match="holds none"):
            call(tmp_path / "empty")
    np.savez(tmp_path / "a.npz", observations=np.zeros((3, 2)), actions=np.zeros((3, 1)),
             rewards=np.zeros(3), episode_lengths=[3])
    assert verify(tmp_path / "a.npz")["ok"]
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04")
    assert not verify(tmp_path / "a.npz")["ok"]
    raw = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps({**raw, "format": 99}))
    report = verify(data)
    assert not report["ok"] and "format 99" in report["errors"][0]
    with pytest.raises(InvalidInputError, match="format 99; only 2 can be repaired"):
        repair(data)


def test_a_former_folder(tmp_path):
    folder = tmp_path / "v1"
    (folder / "episodes").mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps({
        "task": "Push", "observation_shape": [4], "goal_dim": 2, "action_dim": 3, "env": {},
        "config": {}, "format": 1}))
    report = verify(folder)
    assert not report["ok"] and "no repair" in report["errors"][0]
    with pytest.raises(InvalidInputError, match="format 1; only 2 can be repaired"):
        repair(folder)


# -- repair -------------------------------------------------------------------------------------


def test_a_whole_dataset_stays_as_it_is(data):
    before = everything(data)
    result = repair(data)
    assert result["ok"] and result["complete"] and not result["salvaged"] and not result["rebuilt"]
    assert {k: v for k, v in everything(data).items() if k != ".writer.lock"} == {
        k: v for k, v in before.items() if k != ".writer.lock"}


@pytest.mark.parametrize("options", [RecordingOptions("raw"), RecordingOptions("png"),
                                     RecordingOptions("jpeg")])
def test_interrupted_recordings_become_episodes(data, options, monkeypatch):
    monkeypatch.setattr(recording, "_FLUSH_BYTES", 1)
    frames = []
    for seed in (4, 5):
        with DatasetWriter.extend(data, options=options) as writer:
            play(writer.begin({"operator": "A"}), make_episode(seed), steps=3)
            running = open_log(data).running(images=True)
            frames.append(running)
    result = repair(data, progress=lambda done, total: None)
    assert result["ok"] and result["complete"] and result["episodes"] == 6
    assert [{**s, "steps": 3} for s in result["salvaged"]] == [
        {"from": "000004.mcap.part", "episode": 4, "steps": 3},
        {"from": "1-000004.mcap.part", "episode": 5, "steps": 3}]
    episodes = list(open_log(data))
    assert [digest(e) for e in episodes[:4]] == WHOLE
    for episode, seed in zip(episodes[4:], (4, 5), strict=True):
        assert episode.metadata["operator"] == "A" and episode.truncated[-1]
        assert episode.metadata["salvaged_from"].endswith("000004.mcap.part")
        if options.image_format != "jpeg":
            assert is_beginning(episode, make_episode(seed))
    # Frames are copied as they are, not encoded again.
    for live, episode in zip(frames, episodes[4:], strict=True):
        if live is not None:
            for name, images in live.images.items():
                assert np.array_equal(images.frames, episode.images[name].frames[: len(
                    images.frames)])
    assert len(list((data / "set_aside").iterdir())) == 2
    assert repair(data)["salvaged"] == [] and verify(data)["complete"]


def test_a_recording_that_was_finished_but_not_committed_keeps_its_end(data):
    part = data / "episodes" / ".000004.mcap.part"
    shutil.copy(episode_file(data, 3), part)
    result = repair(data)
    assert result["salvaged"] == [{"from": "000004.mcap.part", "episode": 4, "steps": 6}]
    assert digests(data) == [*WHOLE, WHOLE[3]]


def test_what_was_salvaged_before_is_not_salvaged_again(data):
    part = data / "episodes" / ".000004.mcap.part"
    content = episode_file(data, 3).read_bytes()[:-2000]
    part.write_bytes(content)
    assert len(repair(data)["salvaged"]) == 1
    (data / "interrupted").mkdir()
    (data / "interrupted" / "000004.mcap.part").write_bytes(content)
    result = repair(data)
    assert result["salvaged"] == [] and result["set_aside"] == ["000004.mcap.part"]
    assert result["episodes"] == 5 and result["complete"]


def test_a_damaged_episode_is_replaced_by_what_can_be_read(data):
    broken = damage(episode_file(data, 1), 0.6)
    nothing = damage(episode_file(data, 2), 0.001)
    index = damage(episode_file(data, 3), 0.9999)
    result = repair(data)
    assert result["ok"] and result["complete"], result["errors"]
    assert [s["episode"] for s in result["salvaged"]] == [1, 3]
    assert result["set_aside"] == ["000002.mcap"]
    kept = {p.name: p.read_bytes() for p in (data / "set_aside").iterdir()}
    assert kept == {"000001.mcap": broken, "000002.mcap": nothing, "000003.mcap": index}
    log = open_log(data)
    assert [file.number for file in log.files] == [0, 1, 3]
    first, partly, last = log
    assert [digest(first), digest(last)] == [WHOLE[0], WHOLE[3]], "a damaged index costs nothing"
    assert 0 < len(partly) < 6 and is_beginning(partly, make_episode(1))
    assert partly.metadata == {"seed": 1, "salvaged_from": "set_aside/000001.mcap"}
    after = everything(data)
    assert not repair(data)["salvaged"]
    assert {k: v for k, v in everything(data).items() if k != ".writer.lock"} == {
        k: v for k, v in after.items() if k != ".writer.lock"}


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b'{"task": 1}', b"\xff" * 100])
def test_a_description_is_made_again(data, content):
    if content is None:
        (data / "dataset.json").unlink()
    else:
        (data / "dataset.json").write_bytes(content)
    report = verify(data)
    assert not report["ok"] and report["episodes"] == 4 and "dataset.json" in report["errors"][0]
    result = repair(data)
    assert result["ok"] and result["rebuilt"] and open_log(data).info == INFO
    assert digests(data) == WHOLE
    if content is not None:
        assert (data / "set_aside" / "dataset.json").read_bytes() == content


def test_a_description_that_no_episode_has_is_made_again(data):
    raw = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps({**raw, "action_dim": 7}))
    result = repair(data)
    assert result["ok"] and result["rebuilt"] and digests(data) == WHOLE


def test_a_description_is_made_again_from_what_was_interrupted(tmp_path):
    with DatasetWriter(tmp_path / "d", INFO) as writer:
        play(writer.begin(), make_episode(1), steps=2)
    (tmp_path / "d" / "dataset.json").unlink()
    result = repair(tmp_path / "d")
    assert result["ok"] and result["rebuilt"] and result["steps"] == 2


def test_nothing_says_what_it_was(tmp_path):
    DatasetWriter(tmp_path / "d", INFO).close()
    (tmp_path / "d" / "dataset.json").write_bytes(b"{")
    with pytest.raises(InvalidInputError, match=r"not valid JSON.*no episode says what it was"):
        repair(tmp_path / "d")
    assert (tmp_path / "d" / "dataset.json").read_bytes() == b"{"


def test_an_episode_of_another_dataset_is_set_aside(data, tmp_path, episode):
    other = episode(3)
    with DatasetWriter(tmp_path / "other", DatasetInfo.of(other)) as writer:
        writer.append(other)
    shutil.copy(episode_file(tmp_path / "other", 0), episode_file(data, 4))
    assert not verify(data)["ok"]
    result = repair(data)
    assert result["ok"] and result["set_aside"] == ["000004.mcap"] and digests(data) == WHOLE


def test_numbers_that_are_missing_or_there_twice(data):
    episode_file(data, 1).unlink()
    shutil.copy(episode_file(data, 3), data / "episodes" / "0000003.mcap")
    report = verify(data)
    assert len(report["errors"]) == 2
    result = repair(data)
    assert result["ok"] and result["missing"] == [[1, 1]]
    assert result["renumbered"] == [{"from": "0000003.mcap", "episode": 4}]
    assert digests(data) == [WHOLE[0], WHOLE[2], WHOLE[3], WHOLE[3]]
    assert repair(data)["missing"] == []


def test_a_number_far_away_takes_no_time(data):
    shutil.move(episode_file(data, 3), data / "episodes" / "999999999999.mcap")
    assert "episodes 3 to 999999999998 are missing" in verify(data)["errors"][0]
    assert repair(data)["missing"] == [[3, 999999999998]] and verify(data)["ok"]


def test_without_hard_links_originals_are_copied(data, monkeypatch):
    import errno

    def refused(*names):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    broken = damage(episode_file(data, 1), 0.6)
    monkeypatch.setattr(os, "link", refused)
    assert repair(data)["ok"]
    assert {p.name: p.read_bytes() for p in (data / "set_aside").iterdir()} == {
        "000001.mcap": broken}


# -- what was committed and is gone -------------------------------------------------------------


@pytest.fixture
def closed(tmp_path, episode) -> Path:
    """Four episodes, and a writer that was closed in order."""
    one = episode(5)
    with DatasetWriter(tmp_path / "closed", DatasetInfo.of(one, task="Push")) as writer:
        for number in range(4):
            writer.append(episode(5, number))
    return writer.path


def test_the_last_episodes_are_missed_too(closed):
    assert verify(closed)["ok"]
    for number in (2, 3):
        (closed / "episodes" / f"00000{number}.mcap").unlink()
    found = verify(closed)
    assert not found["ok"] and not found["complete"] and "episodes 2 to 3 are" in found["errors"][0]
    with DatasetWriter.extend(closed) as writer:
        assert writer.append(load_dataset(closed)[1][0]).name == "000004.mcap", "no number twice"
    assert "episodes 2 to 3 are" in verify(closed)["errors"][0]
    assert repair(closed)["missing"] == [[2, 3]]
    assert verify(closed)["ok"] and repair(closed)["missing"] == []


def test_a_folder_of_episodes_that_is_gone_is_an_error(closed):
    shutil.rmtree(closed / "episodes")
    found = verify(closed)
    assert not found["ok"] and any("episodes is missing" in e for e in found["errors"])
    assert any("episodes 0 to 3 are" in e for e in found["errors"])
    repair(closed)
    assert verify(closed)["ok"] and verify(closed)["episodes"] == 0


def test_what_was_set_aside_is_not_missed(closed):
    writer, _ = DatasetWriter.reopen(closed, 1)
    writer.close()
    assert verify(closed)["ok"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"through": "x"}', b'{"through": -4}',
                                     b'{"through": 1e99}', b'{"through": true}'])
def test_a_damaged_note_of_the_last_number_changes_nothing(closed, content):
    (closed / ".committed.json").write_bytes(content)
    assert verify(closed)["ok"]


def test_copies_and_mixtures_are_warned_of(closed, tmp_path, episode, dataset_of):
    shutil.copy(closed / "episodes" / "000001.mcap", closed / "episodes" / "000004.mcap")
    other = episode(5, 7)
    other.extra["observation.wrench"] = np.zeros((6, 6))
    more = Path(dataset_of(tmp_path / "more", [other], "Push"))
    shutil.copy(more / "episodes" / "000000.mcap", closed / "episodes" / "000005.mcap")
    found = verify(closed)
    assert found["ok"] and len(found["warnings"]) == 2
    assert "000004.mcap holds the same episode as" in found["warnings"][0]
    assert "in what it holds: observation.wrench" in found["warnings"][1]
