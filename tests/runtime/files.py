"""Takes compiled files apart and puts altered ones together with hashes that fit."""
from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from q8c.runtime import header, strict_json
from q8c.runtime.header import Header


def manifest_of(data: bytes) -> object:
    """The manifest of a file's bytes, as JSON values."""
    head = Header.unpack(data, len(data))
    return strict_json.loads(data[head.manifest_offset:])


def with_manifest(data: bytes, manifest: bytes) -> bytes:
    """The file with another manifest and a header that vouches for it."""
    head = Header.unpack(data, len(data))
    start = head.manifest_offset
    changed = Header(start, len(manifest), start + len(manifest), hashlib.sha256(manifest).digest())
    return changed.pack() + data[header.SIZE:start] + manifest


def save(folder: Path, data: bytes) -> Path:
    """A file of these bytes."""
    path = folder / "changed.q8c"
    path.write_bytes(data)
    return path


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [p for key, child in children for p in _paths(child, (*path, key))]


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-2**64, 2**64), st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5), st.sampled_from([[], {}, [[]], [1], ["$", 0], ["*", 2**61, ["$", 1]], ["//", 1, 0], 2**47]))


def with_junk(content: bytes, data: st.DataObject) -> bytes:
    """The file with some members of its manifest gone or anything at all."""
    manifest: Any = manifest_of(content)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(_paths(manifest)))
        parent = manifest
        for step in path[:-1]:
            parent = parent[step]
        if data.draw(st.booleans()):
            parent[path[-1]] = copy.deepcopy(data.draw(JUNK))
        else:
            del parent[path[-1]]
    return with_manifest(content, json.dumps(manifest).encode())
