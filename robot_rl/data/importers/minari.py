"""Minari datasets: the folder of one, or the ``data`` folder in it, as HDF5, Arrow or Parquet.

Observations of dictionaries and tuples are flattened: dictionaries in alphabetical order of their
keys, tuples in order, each leaf in row-major order, side by side. A ``Discrete`` is one number.
Observations ``achieved_goal`` and ``desired_goal`` beside others become the goals, images uint8
(H, W, 1 or 3) become cameras by their path. Text is left out.

Minari stores T + 1 observations for T actions, so nothing is lost at the end. ``infos`` of T + 1
rows hold what ``reset`` returned first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
from numpy.typing import NDArray

from robot_rl.data.episodes import (
    ACHIEVED,
    ACTION,
    CORE_KEYS,
    DESIRED,
    IMAGES,
    INTERVENTION,
    OBSERVATION,
    RATE,
    REQUESTED,
    RESET,
    REWARD,
    SUCCESS,
    TERMINATED,
    TIMESTAMP,
    TRUNCATED,
    Episode,
    Images,
)
from robot_rl.data.importers.arrays import (
    MAX_EPISODES,
    ArraySource,
    Columns,
    Mapping,
    Notes,
    assemble,
    check_bytes,
    info_from,
    inside,
    need,
    numeric_columns,
    parse_json,
    rate_of,
    read_small_json,
    refusing,
)
from robot_rl.data.importers.base import MAX_BYTES, EpisodeSource, ImportOptions
from robot_rl.data.importers.hdf5 import SafeFile
from robot_rl.data.importers.video import decode_image
from robot_rl.errors import InvalidInputError, unknown_name

# What the exporter writes beside Minari's own, and reads back to the bit.
OWN_KEY, OWN_FILE, OWN_FORMAT = "robot_rl", "robot_rl.hdf5", 1
_MAX_METADATA = 64 << 20
_FLAVOURS = {"hdf5": "main_data.hdf5", "arrow": ".arrow", "parquet": ".parquet"}
_STEP_KEYS = (ACTION, REQUESTED, REWARD, TERMINATED, TRUNCATED, SUCCESS, INTERVENTION, RESET, RATE)
_DEFAULTS = {"actions": ACTION, "rewards": REWARD, "terminations": TERMINATED,
             "truncations": TRUNCATED, "infos/success": SUCCESS, "infos/is_success": SUCCESS}


def open_source(source: Path, options: ImportOptions) -> EpisodeSource:
    """A Minari dataset as a source; parts are named as they lie in an episode.

    For instance ``observations``, ``observations/joints``, ``actions``, ``infos/goal``. What
    :func:`robot_rl.data.exporters.minari.export` wrote is read back as it was, unless a mapping
    asks otherwise.

    Raises:
        InvalidInputError: it is no such folder, is damaged, or reaches out of itself.
    """
    folder = source / "data" if (source / "data").is_dir() else source
    where = f"minari: {source}"
    metadata = read_small_json(folder / "metadata.json", "minari", _MAX_METADATA)
    if not isinstance(metadata, dict):
        raise InvalidInputError(f"{where}: metadata.json is not an object")
    flavour = metadata.get("data_format", "hdf5")
    if not isinstance(flavour, str) or flavour not in _FLAVOURS:
        raise unknown_name("Minari data format", str(flavour)[:50], _FLAVOURS)
    count = metadata.get("total_episodes")
    if type(count) is not int or not 0 <= count <= MAX_EPISODES:
        raise InvalidInputError(
            f"{where}: total_episodes is {count!r}, should be 0 to {MAX_EPISODES}")
    notes = Notes()
    own = metadata.get(OWN_KEY)
    if isinstance(own, dict) and not options.mapping and flavour == "hdf5":
        return _open_own(folder, where, own, count, options, notes)
    mapping = Mapping.parse(options.mapping)
    space = _space(metadata.get("observation_space"), where)
    read, close = (_open_hdf5 if flavour == "hdf5" else _open_arrow)(
        folder, where, flavour, space, notes)
    name = metadata.get("dataset_id")
    config = {"source": source.name} | ({"dataset_id": name} if isinstance(name, str) else {})

    def episodes() -> Iterator[Episode | None]:
        for number in range(count):
            yield _episode(read(number), mapping, notes, f"{where}, episode {number}", config)

    try:
        return ArraySource(where, episodes, notes, count=count, close=close, task=options.task,
                           rate_hz=rate_of(options.rate_hz, 0.0, where), config=config)
    except BaseException:
        close()
        raise


def _space(raw: Any, where: str) -> Any:
    if raw is None:
        return None
    return parse_json(raw, f"{where}: observation_space") if isinstance(raw, str) else raw


def _encoded_shape(space: Any, path: str) -> tuple[int, ...] | None:
    """The shape of the image space at ``path`` (a/b), None if there is no image there."""
    for part in [p for p in path.split("/") if p]:
        below = space.get("subspaces") if isinstance(space, dict) else None
        if isinstance(below, dict):
            space = below.get(part)
        elif isinstance(below, list) and re.fullmatch(r"(_index_)?\d{1,4}", part):
            index = int(part.removeprefix("_index_"))
            space = below[index] if index < len(below) else None
        else:
            return None
    shape = space.get("shape") if isinstance(space, dict) else None
    if not isinstance(shape, list) or space.get("dtype") != "uint8" or len(shape) not in (2, 3):
        return None
    return tuple(shape) if all(type(n) is int and 0 < n < 65536 for n in shape) else None


def _episode(
    columns: Columns, mapping: Mapping, notes: Notes, where: str, metadata: dict[str, Any]
) -> Episode | None:
    defaults = dict(_DEFAULTS)
    parts = dict(mapping.parts)
    leaves = sorted((n for n in columns if n.split("/")[0] == "observations"), key=_order)
    goals = {f"observations/{n}" for n in ("achieved_goal", "desired_goal")}
    if goals < set(leaves):
        defaults |= {"observations/achieved_goal": ACHIEVED, "observations/desired_goal": DESIRED}
        leaves = [name for name in leaves if name not in goals]
    for name in leaves:
        if columns[name].dtype == np.uint8 and columns[name].ndim == 4 and (
            columns[name].shape[3] in (1, 3)
        ):
            camera = name.removeprefix("observations").strip("/").removeprefix(IMAGES)
            defaults[name] = f"{IMAGES}{camera.replace('/', '.') or 'camera'}"
    flat = [n for n in leaves if n not in defaults and n not in mapping.drop]
    actions = sorted((n for n in columns if n.startswith("actions/")), key=_order)
    for key, names in ((OBSERVATION, flat), (ACTION, actions)):
        if names and key not in parts:
            parts |= Mapping.parse({key: names}).parts
    # A lone dimension of Discrete has none of its own.
    columns = {n: a[:, None] if a.ndim == 1 and n in (*flat, *actions) else a
               for n, a in columns.items()}
    values, extra = Mapping(parts, mapping.drop).apply(columns, defaults, where)
    rows = len(values.get(ACTION, ()))
    for key in _STEP_KEYS:
        if key in values and len(values[key]) == rows + 1:
            values[key] = values[key][1:]
    for name in [n for n, array in extra.items() if len(array) not in (rows, rows + 1)]:
        notes.add(f"left out: {name}, it has neither a row for each step nor for each state")
        del extra[name]
    return assemble(values, extra, where, notes, metadata)


def _order(name: str) -> list[tuple[int, int, str]]:
    return [(0, int(part.removeprefix("_index_")), "")
            if re.fullmatch(r"_index_\d{1,9}", part) else (1, 0, part)
            for part in name.split("/")]


# -- HDF5 ---------------------------------------------------------------------------------------


def _open_hdf5(
    folder: Path, where: str, flavour: str, space: Any, notes: Notes
) -> tuple[Callable[[int], Columns], Callable[[], None]]:
    file = SafeFile(folder / _FLAVOURS[flavour], "minari")

    def read(number: int) -> Columns:
        group = file.group(file.root, f"episode_{number}")
        if group is None:
            raise InvalidInputError(f"{where} has no episode_{number}")
        items = file.arrays(group)
        encoded, plain = {}, {}
        for name, item in items.items():
            shape = (_encoded_shape(space, name.partition("/")[2])
                     if name.split("/")[0] == "observations" else None)
            with refusing(f"{where}: {name}"):
                if shape and len(item.shape) in (1, 2):
                    encoded[name] = (item, shape)
                else:
                    plain[name] = item
        columns = file.read_all(file.plain(plain, notes))
        for name, (item, shape) in encoded.items():
            columns[name] = _images(
                (bytes(bytearray(file.read(item, i, i + 1)[0])) for i in range(item.shape[0])),
                item.shape[0], shape, f"{where}, episode {number}: {name}")
        return columns

    return read, file.close


def _images(
    contents: Iterator[bytes], count: int, shape: tuple[int, ...], where: str
) -> NDArray[np.uint8]:
    size = (shape[0], shape[1])
    channels = shape[2] if len(shape) == 3 else 1
    check_bytes(count * size[0] * size[1] * channels, where)
    frames = np.empty((count, *size, channels), np.uint8)
    for i, content in enumerate(contents):
        frame = decode_image(content, f"{where} {i}", size)
        if frame.shape != frames.shape[1:]:
            raise InvalidInputError(f"{where} {i} has shape {frame.shape}, should be {shape}")
        frames[i] = frame
    return frames


# -- Arrow and Parquet --------------------------------------------------------------------------


def _open_arrow(
    folder: Path, where: str, flavour: str, space: Any, notes: Notes
) -> tuple[Callable[[int], Columns], Callable[[], None]]:
    def read(number: int) -> Columns:
        suffix = _FLAVOURS[flavour]
        with refusing(f"{where}, episode {number}"):
            names = sorted(p.name for p in (folder / str(number)).iterdir() if p.suffix == suffix)
        if len(names) != 1:
            raise InvalidInputError(
                f"{where}, episode {number}: {len(names)} {suffix} files, should be one")
        batch = _arrow_table(inside(folder, f"{number}/{names[0]}", where), flavour)
        columns: Columns = {}
        with refusing(f"{where}, episode {number}"):
            for name in batch.schema.names:
                if name != "episode_id":
                    _flatten(batch.column(name), name, space, columns, where, notes)
        for name in list(columns):
            # Rows of what belongs to steps are padded to those of states.
            if name.split("/")[0] in ("actions", "rewards", "terminations", "truncations"):
                columns[name] = columns[name][:-1]
        return numeric_columns(columns, notes)

    return read, lambda: None


def _arrow_table(file: Path, flavour: str) -> Any:
    pa = need("pyarrow", "minari")
    with refusing(f"minari: {file}"):
        check_bytes(file.stat().st_size, f"minari: {file}")
        if flavour == "parquet":
            pq = need("pyarrow.parquet", "minari")
            with pq.ParquetFile(file) as parquet:
                check_parquet(parquet, f"minari: {file}")
                table = parquet.read()
        else:
            with pa.OSFile(str(file)) as stream, pa.ipc.open_file(stream) as reader:
                table = reader.read_all()
        table.validate(full=True)
        check_bytes(table.nbytes, f"minari: {file}")
        return table.combine_chunks()


def check_parquet(parquet: Any, where: str) -> None:
    """Raise InvalidInputError for a parquet file that claims more than MAX_BYTES.

    Columns are not looked at: pyarrow ends the process where one of them is damaged.
    """
    metadata = parquet.metadata
    if not 0 <= metadata.num_rows <= MAX_BYTES // 16:
        raise InvalidInputError(f"{where} claims {metadata.num_rows} rows")
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        check_bytes(group.total_byte_size, where)
        check_bytes(8 * group.num_rows, where)


def _flatten(
    column: Any, name: str, space: Any, columns: Columns, where: str, notes: Notes
) -> None:
    pa = need("pyarrow", "minari")
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    kind = array.type
    if pa.types.is_struct(kind):
        for i, item in enumerate(kind):
            below = f"_index_{item.name}" if item.name.isdigit() else item.name
            _flatten(array.field(i), f"{name}/{below}", space, columns, where, notes)
        return
    shape = _encoded_shape(space, name.partition("/")[2]) if name[:12] == "observations" else None
    if shape and pa.types.is_binary(kind):
        columns[name] = _images((item.as_py() or b"" for item in array), len(array), shape,
                                f"{where}: {name}")
        return
    width = 1
    while pa.types.is_fixed_size_list(kind):
        width *= kind.list_size
        array, kind = array.flatten(), kind.value_type
    if array.null_count or not (pa.types.is_floating(kind) or pa.types.is_integer(kind)
                                or pa.types.is_boolean(kind)):
        notes.add(f"left out: {name} ({kind})")
        return
    values = array.to_numpy(zero_copy_only=False)
    rows = len(column)
    if values.size != rows * width:
        notes.add(f"left out: {name}, some rows are missing")
        return
    whole = values.reshape(rows, *(shape or (width,))) if shape else values.reshape(rows, width)
    columns[name] = whole[:, 0] if width == 1 and not shape else whole


# -- what the exporter wrote --------------------------------------------------------------------


def _open_own(
    folder: Path, where: str, own: dict[str, Any], count: int, options: ImportOptions, notes: Notes
) -> EpisodeSource:
    if own.get("format") != OWN_FORMAT:
        raise InvalidInputError(
            f"{where}: format {own.get('format')!r}, this version reads {OWN_FORMAT}")
    info = info_from(own.get("info"), where)
    info.rate_hz = rate_of(options.rate_hz, info.rate_hz, where)
    info.task = options.task or info.task
    file = SafeFile(folder / _FLAVOURS["hdf5"], "minari")
    try:
        side = SafeFile(folder / OWN_FILE, "minari")
    except BaseException:
        file.close()
        raise

    def close() -> None:
        file.close()
        side.close()

    def read() -> Iterator[Episode]:
        for number in range(count):
            name = f"episode_{number}"
            groups = file.group(file.root, name), side.group(side.root, name)
            if None in groups:
                raise InvalidInputError(f"{where} has no {name}")
            columns = file.read_all(file.arrays(groups[0]))
            yield _own_episode(columns, side.read_all(side.arrays(groups[1])), where)

    return ArraySource(where, read, notes, count=count, info=info, close=close)


def _own_episode(columns: Columns, side: Columns, where: str) -> Episode:
    values = {unquote(name.removeprefix("empty/")): array for name, array in side.items()
              if name.startswith("empty/")}
    images: dict[str, NDArray[Any]] = {}
    names = {"observation": OBSERVATION, "achieved_goal": ACHIEVED, "desired_goal": DESIRED}
    fixed = {"actions": ACTION, "rewards": REWARD, "terminations": TERMINATED,
             "truncations": TRUNCATED, "infos/success": SUCCESS, "observations": OBSERVATION}
    for name, array in columns.items():
        first, _, rest = name.partition("/")
        if name in fixed:
            values[fixed[name]] = array
        elif first == "infos":
            values[unquote(rest)] = array
        elif rest in names:
            values[names[rest]] = array[0] if rest == "desired_goal" else array
        else:
            images[unquote(rest).removeprefix(IMAGES)] = array
    with refusing(where):
        metadata = parse_json(side["metadata"].tobytes(), f"{where}: metadata")
    return own_episode(values, {name: _own_images(name, array, side, where)
                                for name, array in images.items()}, metadata, where)


def _own_images(name: str, seen: NDArray[Any], side: Columns, where: str) -> Images:
    with refusing(f"{where}: camera {name}"):
        parts = {part: side[f"images/{quoted(name)}/{part}"]
                 for part in ("index", "stamp_s", "rest", "rest_at")}
        return rebuilt(seen, parts["index"], parts["stamp_s"], parts["rest"], parts["rest_at"])


def rebuilt(
    seen: NDArray[Any], index: NDArray[Any], stamp_s: NDArray[Any], rest: NDArray[Any],
    rest_at: NDArray[Any],
) -> Images:
    """Frames in the order they were taken, of those that states saw and the rest."""
    count = len(stamp_s)
    if count > len(seen) + len(rest) or (
        index.shape != (len(seen),) or rest_at.shape != (len(rest),)
    ) or not (
        set(index.tolist()) | set(rest_at.tolist()) == set(range(count))
    ):
        raise InvalidInputError(f"{count} stamps, but not as many frames")
    check_bytes(count * int(np.prod(seen.shape[1:])), "frames")
    frames = np.empty((count, *seen.shape[1:]), np.uint8)
    frames[index] = seen
    frames[rest_at] = rest
    return Images(frames, index, stamp_s)


def quoted(key: str) -> str:
    """``key`` as a name in HDF5, where / and lone dots have a meaning."""
    name = quote(key, safe=" +,:;=@[](){}<>!&'*#$^~|`")
    return name.replace(".", "%2E") if set(name) <= {"."} else name


def own_episode(
    values: Columns, images: dict[str, Images], metadata: Any, where: str
) -> Episode:
    """An episode of arrays by their keys on disk.

    Raises:
        InvalidInputError: one lacks or does not fit.
    """
    required = (OBSERVATION, ACHIEVED, DESIRED, ACTION, REWARD, TERMINATED, TRUNCATED, SUCCESS)
    missing = [key for key in required if key not in values]
    if missing or not isinstance(metadata, dict):
        raise InvalidInputError(f"{where} lacks {', '.join(missing) or 'metadata'}")
    prefix = f"{TIMESTAMP}."
    episode = Episode(
        observation=values[OBSERVATION], achieved=values[ACHIEVED], desired=values[DESIRED],
        action=values[ACTION], reward=values[REWARD], terminated=values[TERMINATED],
        truncated=values[TRUNCATED], success=values[SUCCESS], requested=values.get(REQUESTED),
        intervention=values.get(INTERVENTION), reset=values.get(RESET),
        rate_hz=values.get(RATE), stamp_s=values.get(TIMESTAMP), images=images,
        stamps_s={k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)},
        extra={k: v for k, v in values.items()
               if k not in CORE_KEYS and not k.startswith((prefix, IMAGES))},
        metadata=metadata,
    )
    with refusing(where):
        episode.check(where)
    return episode

