"""The figures of a file or folder for `mixq plot`, which is recognized by its content.

Contract: files are bounded and checked by the readers of their formats.
"""

from __future__ import annotations

from pathlib import Path

from mixq.errors import ModelFileError, StorageError, printable
from mixq.formats.json_file import read_json_object, regular_file_size
from mixq.formats.npz import is_zip
from mixq.measure.plots import from_bench, from_folder, from_recording, from_replay
from mixq.measure.plots.figure import Figure
from mixq.measure.speed import compare
from mixq.plan.recording import Recording

_LOOK = 1 << 16


def figures_of(path: Path) -> list[Figure]:
    """Return the figures of a file or a folder.

    Raises:
        ModelFileError: it cannot be plotted, or is damaged.
        StorageError: it cannot be read.
    """
    if path.is_dir():
        return from_folder.figures(path)
    regular_file_size(path)  # a pipe would block
    try:
        with path.open("rb") as file:
            beginning = file.read(_LOOK)
    except OSError as error:
        raise StorageError(f"{printable(path)} cannot be read: {error.strerror or error}.") from error
    if is_zip(beginning):
        return from_recording.figures(Recording.read(path))
    if b'"combinations"' in beginning or b'"hit_rate_by_slots"' in beginning:
        content = read_json_object(path)
        if from_replay.is_replay(content):
            return from_replay.figures(content, str(path))
    try:
        made = from_bench.figures(compare.read(path))
    except ModelFileError as error:
        raise ModelFileError(
            f"{error.message} `mixq plot` draws recordings (.mqt), lines of mixq bench --save, mixq replay --json and "
            "quantized folders."
        ) from error
    if not made:
        raise ModelFileError(
            f"{printable(path)} has no figure to draw: decode speeds at two sizes of GPU memory are needed, or tests "
            "on the CPU.",
            hint="Add some with: mixq bench --save FILE",
        )
    return made
