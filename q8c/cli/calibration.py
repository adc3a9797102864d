"""Inputs to calibrate on, from files."""
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from q8c.cli.common import UsageError

if TYPE_CHECKING:
    from q8c.passes.calibration import Feeds


def read_calibration(path: Path | None) -> Feeds:
    """The feeds of an .npz file (one), or of all .npz files in a folder, by name; none if there is no path.

    Arrays go by the names of inputs, as `q8c run -i` takes them. Raises UsageError.
    """
    from q8c.cli.feeds import read_feeds
    if path is None:
        return ()
    files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    if not files:
        raise UsageError(f"--calibrate {path}: the folder holds no .npz files; expected one for each feed, with arrays "
                         "by input name")
    return tuple(read_feeds(file) for file in files)
