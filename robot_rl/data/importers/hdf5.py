"""Demonstrations in HDF5: robomimic's files and those in the manner of D4RL.

Only plain arrays in the file itself are read: no links to other files or names, no raw data kept
outside, no virtual arrays, no filters from plug-ins, no variable lengths or object references.
"""

from __future__ import annotations

import json
import math
import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_rl.data.episodes import (
    ACTION,
    DESIRED,
    IMAGES,
    OBSERVATION,
    REWARD,
    SUCCESS,
    TERMINATED,
    TRUNCATED,
)
from robot_rl.data.importers.arrays import (
    MAX_EPISODES,
    MAX_JSON_BYTES,
    ArraySource,
    Columns,
    Mapping,
    Notes,
    assemble,
    check_bytes,
    need,
    numeric_columns,
    parse_json,
    rate_of,
    refusing,
)
from robot_rl.data.importers.base import EpisodeSource, ImportOptions
from robot_rl.errors import InvalidInputError

MAX_DEPTH = 8
_HEAP = b"GCOL\x01\0\0\0"
MAX_NAMES = 10_000
# Built into HDF5 or h5py: gzip, shuffle, checksum, szip, n-bit, scale-offset, lzf.
_FILTERS = {1, 2, 3, 4, 5, 6, 32000}
# gzip cannot pack more than 1,032 to 1; what claims more than this was never written.
_MAX_RATIO, _SMALL = 1100, 64 << 20
_CHUNKS_AT_ONCE = 10_000


class SafeFile:
    """An HDF5 file of which only plain arrays are read, each of at most MAX_BYTES.

    Raises:
        InvalidInputError: it is missing or not HDF5.
    """

    def __init__(self, path: Path, where: str) -> None:
        self._h5py = need("h5py", where)
        self._path, self._heaps_checked = path, False
        self.where = f"{where}: {path}"
        if not path.is_file():
            raise InvalidInputError(f"{self.where} does not exist or is not a file")
        with refusing(self.where):
            self.root = self._h5py.File(path, "r", locking=False)

    def close(self) -> None:
        self.root.close()

    def names(self, group: Any) -> list[str]:
        """What is in a group, sorted."""
        where = f"{self.where}{group.name}"
        with refusing(where):
            if len(group) > MAX_EPISODES:
                raise InvalidInputError(
                    f"{where} holds {len(group)} names, the limit is {MAX_EPISODES}")
            return sorted(group.keys())

    def child(self, group: Any, name: str) -> Any:
        """The group or array ``name`` in ``group``, None if there is none."""
        where = f"{self.where}{group.name.rstrip('/')}/{name}"
        with refusing(where):
            link = group.get(name, getlink=True)
            if link is None:
                return None
            if not isinstance(link, self._h5py.HardLink):
                raise InvalidInputError(
                    f"{where} is a {type(link).__name__}; links are not followed")
            return group[name]

    def group(self, group: Any, name: str) -> Any:
        """The group ``name`` in ``group``, None if there is none."""
        found = self.child(group, name)
        if found is not None and not isinstance(found, self._h5py.Group):
            raise InvalidInputError(f"{self.where}: {name} should be a group")
        return found

    def check_heaps(self) -> None:
        """Before what is of variable length is read: a damaged heap makes HDF5 crash or hang."""
        if not self._heaps_checked:
            with refusing(self.where):
                check_heaps(self._path, self.where)
            self._heaps_checked = True

    def size(self, item: Any) -> int:
        """The bytes of an array, after it was seen to be a plain one."""
        where = f"{self.where}{item.name}"
        if not isinstance(item, self._h5py.Dataset) or item.shape is None:
            raise InvalidInputError(f"{where} is not an array")
        settings = item.id.get_create_plist()
        if item.is_virtual or settings.get_external_count():
            raise InvalidInputError(f"{where} keeps its data in other files, which is refused")
        for number in range(settings.get_nfilters()):
            code = settings.get_filter(number)[0]
            if code not in _FILTERS:
                raise InvalidInputError(
                    f"{where} needs the HDF5 filter {code}; only built-in ones are used")
        if item.dtype.hasobject and not self._is_bytes(item):
            raise InvalidInputError(f"{where} is of objects or of variable length ({item.dtype})")
        size = math.prod(int(n) for n in item.shape) * item.dtype.itemsize
        check_bytes(size, where)
        many = size > _SMALL or self._chunks(item) > _CHUNKS_AT_ONCE
        if many and size > _MAX_RATIO * item.id.get_storage_size():
            raise InvalidInputError(
                f"{where} claims {size} bytes of which {item.id.get_storage_size()} are stored")
        return size

    def _is_bytes(self, item: Any) -> bool:
        # Rows of encoded images; their lengths are bounded by the file's own.
        kinds = self._h5py.h5t
        return bool(item.id.get_type().equal(kinds.vlen_create(kinds.STD_U8LE)))

    def read(self, item: Any, first: int = 0, end: int | None = None) -> NDArray[Any]:
        """The rows ``first`` to ``end`` of an array."""
        with refusing(f"{self.where}{getattr(item, 'name', '')}"):
            self.size(item)
            if item.dtype.hasobject:
                self.check_heaps()
            if item.ndim == 0:
                return np.asarray(item[()])
            end = item.shape[0] if end is None else min(end, item.shape[0])
            # HDF5 takes two kilobytes for every piece of an array that is read at once.
            step = max(1, item.shape[0] * _CHUNKS_AT_ONCE // max(self._chunks(item), 1))
            if end - first <= step:
                return np.asarray(item[first:end])
            return np.concatenate([item[i:min(i + step, end)] for i in range(first, end, step)])

    def _chunks(self, item: Any) -> int:
        """In how many pieces an array is stored."""
        if not item.chunks or not item.shape:
            return 1
        return math.prod(-(-int(n) // int(c)) for n, c in zip(item.shape, item.chunks, strict=True))

    def arrays(self, group: Any, prefix: str = "", depth: int = 0) -> dict[str, Any]:
        """Every array in ``group`` and the groups in it by ``prefix`` and path, unread."""
        if depth > MAX_DEPTH:
            raise InvalidInputError(f"{self.where} has groups deeper than {MAX_DEPTH}")
        found: dict[str, Any] = {}
        for name in self.names(group):
            item = self.child(group, name)
            if isinstance(item, self._h5py.Group):
                found |= self.arrays(item, f"{prefix}{name}/", depth + 1)
            elif isinstance(item, self._h5py.Dataset):
                found[f"{prefix}{name}"] = item
            if len(found) > MAX_NAMES:
                raise InvalidInputError(f"{self.where}{group.name} has over {MAX_NAMES} arrays")
        return found

    def plain(self, items: dict[str, Any], notes: Notes) -> dict[str, Any]:
        """Those that hold numbers; others are left out with a note."""
        kept = {}
        for name, item in items.items():
            with refusing(f"{self.where}: {name}"):
                if item.dtype.kind in "fiub" and item.shape:
                    kept[name] = item
                else:
                    notes.add(f"left out: {name} ({item.dtype} of shape {item.shape})")
        return kept

    def read_all(self, items: dict[str, Any]) -> Columns:
        """Every array of ``items``, together at most MAX_BYTES."""
        with refusing(self.where):
            check_bytes(sum(self.size(item) for item in items.values()), self.where)
        return {name: self.read(item) for name, item in items.items()}

    def text(self, item: Any, name: str) -> str | None:
        """A text attribute of at most MAX_JSON_BYTES, None if there is none."""
        where = f"{self.where}: attribute {name}"
        with refusing(where):
            if name not in item.attrs:
                return None
            attribute = item.attrs.get_id(name)
            if attribute.get_storage_size() > MAX_JSON_BYTES:
                raise InvalidInputError(f"{where} is larger than {MAX_JSON_BYTES} bytes")
            # A damaged type of variable length makes HDF5 crash.
            if attribute.shape != () or not isinstance(
                attribute.get_type(), self._h5py.h5t.TypeStringID
            ):
                raise InvalidInputError(f"{where} is not a text")
            self.check_heaps()
            value = item.attrs[name]
            if isinstance(value, bytes):
                value = value.decode()
            return str(value) if isinstance(value, (str, np.str_)) else None


def check_heaps(path: Path, where: str) -> None:
    """Walk every global heap of an HDF5 file as HDF5 would, without trusting it.

    A heap is ``GCOL``, a version, its size, and objects of an index, a count of references and a
    size each (HDF5 File Format Specification 3.0, III.E). HDF5 follows the sizes unseen.

    Raises:
        InvalidInputError: an object reaches out of its heap, or leads nowhere.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        at = content.find(_HEAP)
        while at >= 0:
            end = at + int.from_bytes(content[at + 8:at + 16], "little")
            place = at + 16
            if end > len(content) or end < place:
                raise InvalidInputError(f"{where}: a heap at byte {at} reaches out of the file")
            while end - place >= 16:
                index = int.from_bytes(content[place:place + 2], "little")
                size = int.from_bytes(content[place + 8:place + 16], "little")
                length = 16 + (size + 7) // 8 * 8 if index else size
                if not 16 <= length <= end - place:
                    raise InvalidInputError(
                        f"{where}: an object at byte {place} reaches out of its heap")
                place += length
            at = content.find(_HEAP, at + len(_HEAP))


def open_source(source: Path, options: ImportOptions) -> EpisodeSource:
    """An HDF5 file of either kind, by what lies in it: robomimic's has a group ``data``.

    Raises:
        InvalidInputError: it is of neither kind, is damaged, or reaches out of itself.
    """
    file = SafeFile(source, "hdf5")
    try:
        names = file.names(file.root)
    finally:
        file.close()
    return (open_robomimic if "data" in names else open_d4rl)(source, options)


# -- robomimic ----------------------------------------------------------------------------------

_DEMO = re.compile(r"demo_?(\d{1,9})")


def open_robomimic(source: Path, options: ImportOptions) -> EpisodeSource:
    """robomimic's HDF5: data/demo_N/{obs/*, next_obs/*, actions, rewards, dones, states}.

    Without a mapping: ``observation.state`` is every one-dimensional part of ``obs`` side by
    side, in alphabetical order (``object`` among them), images are cameras by the part's name less
    ``_image``, ``terminated`` is ``dones`` (as robomimic trains from it), ``success`` a reward
    above 0, the rest extra arrays. The mapping names parts as they lie in a demo: ``obs/object``.
    Where ``next_obs`` holds all parts of ``obs`` its last row is the last state.

    Raises:
        InvalidInputError: it is no such file, is damaged, or reaches out of itself.
    """
    file, notes = SafeFile(source, "robomimic"), Notes()
    mapping = Mapping.parse(options.mapping)
    try:
        data = file.group(file.root, "data")
        if data is None:
            raise InvalidInputError(f"{file.where} has no group data; is it from robomimic?")
        demos = sorted((int(match[1]), name) for name in file.names(data)
                       if (match := _DEMO.fullmatch(name)))
        if not demos:
            raise InvalidInputError(f"{file.where}/data holds no demo_0, demo_1, ...")
        env = _env(file, data)
        masks = _masks(file, notes)

        def read() -> Iterator[Any]:
            for number, name in demos:
                demo = file.group(data, name)
                if demo is None:
                    raise InvalidInputError(f"{file.where}/data/{name} is gone")
                metadata = {"source": source.name, "demo": name} | (
                    {"masks": masks[name]} if name in masks else {})
                yield _demo(file, demo, mapping, notes, f"{file.where}, demo {number}", metadata)

        name = env.get("env_name", "") if isinstance(env.get("env_name", ""), str) else ""
        return ArraySource(
            file.where, read, notes, count=len(demos), close=file.close,
            task=options.task or name,
            rate_hz=rate_of(options.rate_hz, _frequency(env), file.where),
            config={"source": source.name, "env_args": env},
        )
    except BaseException:
        file.close()
        raise


def _env(file: SafeFile, data: Any) -> dict[str, Any]:
    text = file.text(data, "env_args")
    if not text:
        return {}
    if len(text) > MAX_JSON_BYTES:
        raise InvalidInputError(f"{file.where}: env_args is larger than {MAX_JSON_BYTES} bytes")
    env = parse_json(text, f"{file.where}: env_args")
    with refusing(f"{file.where}: env_args"):
        json.dumps(env, allow_nan=False)
    return env if isinstance(env, dict) else {}


def _frequency(env: dict[str, Any]) -> float:
    kwargs = env.get("env_kwargs")
    value = kwargs.get("control_freq") if isinstance(kwargs, dict) else None
    return float(value) if isinstance(value, (int, float)) and 0 < value < 1e6 else 0.0


def _masks(file: SafeFile, notes: Notes) -> dict[str, list[str]]:
    """Which filters (train, valid, ...) a demo belongs to."""
    group = file.group(file.root, "mask")
    found: dict[str, list[str]] = {}
    if group is None:
        return {}
    for mask in file.names(group):
        item = file.child(group, mask)
        with refusing(f"{file.where}/mask/{mask}"):
            if getattr(item, "dtype", None) is None or item.dtype.kind != "S":
                notes.add(f"left out: mask {mask}, not of plain text")
                continue
            for name in file.read(item).ravel()[:MAX_EPISODES].tolist():
                found.setdefault(name.decode(), []).append(mask)
    return found


def _demo(
    file: SafeFile, demo: Any, mapping: Mapping, notes: Notes, where: str, metadata: dict[str, Any]
) -> Any:
    items = file.plain(file.arrays(demo), notes)
    columns = file.read_all(items)
    after = {f"obs/{name[9:]}": columns.pop(name) for name in list(columns)
             if name.startswith("next_obs/")}
    seen = {name for name in columns if name.startswith("obs/")}
    rows = len(columns.get("actions", ()))
    if seen and seen <= set(after):
        for name in seen:
            if len(after[name]) != len(columns[name]) or not len(after[name]) or (
                after[name].shape[1:] != columns[name].shape[1:]
            ):
                raise InvalidInputError(
                    f"{where}: next_obs/{name[4:]} has shape {after[name].shape}, should be "
                    f"{columns[name].shape} as {name} has")
            columns[name] = np.concatenate([columns[name], after[name][-1:]])
    defaults = {"actions": ACTION, "rewards": REWARD, "dones": TERMINATED}
    flat = [name for name in sorted(seen) if columns[name].ndim == 2]
    for name in seen:
        if columns[name].dtype == np.uint8 and columns[name].ndim == 4:
            defaults[name] = f"{IMAGES}{name[4:].removesuffix('_image')}"
    if OBSERVATION not in mapping.parts and flat:
        kept = [name for name in flat if name not in mapping.drop]
        mapping = Mapping(
            mapping.parts | Mapping.parse({OBSERVATION: kept}).parts if kept else mapping.parts,
            mapping.drop)
    if SUCCESS not in mapping.parts and columns.get("rewards", np.zeros(0)).ndim == 1:
        if "rewards" in columns:
            columns["success from rewards"] = columns["rewards"] > 0
            defaults["success from rewards"] = SUCCESS
    values, extra = mapping.apply(columns, defaults, where)
    extra = {name: array for name, array in extra.items() if len(array) in (rows, rows + 1)}
    return assemble(values, extra, where, notes, metadata)


# -- D4RL ---------------------------------------------------------------------------------------

_D4RL = {"observations": OBSERVATION, "actions": ACTION, "rewards": REWARD,
         "terminals": TERMINATED, "timeouts": TRUNCATED, "infos/goal": DESIRED}


def open_d4rl(source: Path, options: ImportOptions) -> EpisodeSource:
    """HDF5 in the manner of D4RL: rows of all episodes one after the other.

    ``observations``, ``actions``, ``rewards``, ``terminals``, optionally ``timeouts``,
    ``next_observations`` and anything under ``infos`` (``infos/goal`` is the desired goal; name
    ``observation.achieved_goal`` in a mapping to train towards it). An episode ends where
    ``terminals`` or ``timeouts`` is set; without any it is one episode. Only the part between two
    ends is in memory.

    Raises:
        InvalidInputError: it is no such file, is damaged, or reaches out of itself.
    """
    file, notes = SafeFile(source, "d4rl"), Notes()
    mapping = Mapping.parse(options.mapping)
    try:
        items = file.plain(file.arrays(file.root), notes)
        for name in ("observations", "actions"):
            if name not in items and not mapping.parts:
                raise InvalidInputError(
                    f"{file.where} has no {name}; it has: {', '.join(sorted(items)) or 'nothing'}")
        actions = mapping.parts[ACTION].names[0] if ACTION in mapping.parts else "actions"
        if actions not in items:
            raise InvalidInputError(f"{file.where} has no {actions}")
        total = int(items[actions].shape[0])
        for name in [n for n, item in items.items() if item.shape[0] != total]:
            found = items.pop(name)
            if name in _D4RL:
                raise InvalidInputError(
                    f"{file.where}: {name} has shape {found.shape}, should have {total} rows")
            notes.add(f"left out: {name} of shape {found.shape}, it has not {total} rows")
        bounds = _bounds(file, items, total)

        def read() -> Iterator[Any]:
            for number, (first, end) in enumerate(bounds):
                yield _d4rl_episode(file, items, (first, end), mapping, notes,
                                    f"{file.where}, episode {number}")

        return ArraySource(
            file.where, read, notes, count=len(bounds), close=file.close, task=options.task,
            rate_hz=rate_of(options.rate_hz, 0.0, file.where), config={"source": source.name},
        )
    except BaseException:
        file.close()
        raise


def _bounds(file: SafeFile, items: dict[str, Any], total: int) -> list[tuple[int, int]]:
    end = np.zeros(total, np.bool_)
    for name in ("terminals", "timeouts"):
        if name in items:
            flags = file.read(items[name])
            if flags.size != total:
                raise InvalidInputError(
                    f"{file.where}: {name} has shape {flags.shape}, should be ({total},)")
            end |= flags.reshape(total) != 0
    if total:
        end[-1] = True
    ends = (np.flatnonzero(end) + 1).tolist()
    if len(ends) > MAX_EPISODES:
        raise InvalidInputError(
            f"{file.where} holds {len(ends)} episodes, the limit is {MAX_EPISODES}")
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _d4rl_episode(
    file: SafeFile, items: dict[str, Any], rows: tuple[int, int], mapping: Mapping, notes: Notes,
    where: str,
) -> Any:
    first, end = rows
    with refusing(where):
        size = sum(file.size(item) // max(item.shape[0], 1) for item in items.values())
        check_bytes(size * (end - first), where)
    columns = numeric_columns(
        {name: file.read(item, first, end) for name, item in items.items()}, notes)
    after = columns.pop("next_observations", None)
    if after is not None and after.shape == columns["observations"].shape:
        columns["observations"] = np.concatenate([columns["observations"], after[-1:]])
        goals = {"infos/goal"} | set(
            mapping.parts[DESIRED].names if DESIRED in mapping.parts else ())
        for name in goals & set(columns):
            columns[name] = np.concatenate([columns[name], columns[name][-1:]])
    values, extra = mapping.apply(columns, _D4RL, where)
    return assemble(values, extra, where, notes, {"source": Path(file.root.filename).name})
