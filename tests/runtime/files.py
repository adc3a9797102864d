"""Takes compiled files apart and puts altered ones together with hashes that fit."""
from __future__ import annotations

import hashlib
from pathlib import Path

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
