"""The first 128 bytes of a compiled file.

    0   8   magic                      64  32  SHA-256 of the manifest
    8   4   format version             96  32  SHA-256 of the 96 bytes before
    12  4   size of this header
    16  8   offset of the manifest     then the sections, then the manifest up to the end of the file;
    24  8   size of the manifest       all integers little-endian, every gap zero.
    32  8   size of the file
    40  24  zero

The manifest holds the hashes of the sections, so the header's hash stands for every byte of the file.
"""
from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from q8c.errors import ArtifactError

MAGIC = b"\x89q8c\r\n\x1a\n"
VERSION = 7
SIZE = 128
PAGE = 4096
"""The first section starts here, and no gap between sections is this long."""
_LAYOUT = struct.Struct("<8sIIQQQ24x32s")


@dataclass(frozen=True)
class Header:
    """Where the manifest is and what the file as a whole must be."""

    manifest_offset: int
    manifest_size: int
    file_size: int
    manifest_sha256: bytes

    def pack(self) -> bytes:
        """The header's bytes."""
        body = _LAYOUT.pack(MAGIC, VERSION, SIZE, self.manifest_offset, self.manifest_size, self.file_size,
                            self.manifest_sha256)
        return body + hashlib.sha256(body).digest()

    @staticmethod
    def unpack(data: bytes, file_size: int) -> Header:
        """The header in a file's first bytes. Raises ArtifactError for another kind or version of file, or damage."""
        if not data.startswith(MAGIC):
            raise ArtifactError(f"this is not a file compiled by q8c (it starts with {data[:8]!r}); "
                                "compile the model with `q8c compile` first")
        if len(data) < SIZE:
            raise ArtifactError(f"the file is cut short: {len(data)} bytes; compile the model again")
        _, version, size, offset, length, total, digest = _LAYOUT.unpack_from(data)
        if version != VERSION:
            raise ArtifactError(f"the file has format version {version}, this q8c reads version {VERSION}; "
                                "compile the model again")
        header = Header(offset, length, total, digest)
        if size != SIZE or header.pack() != data[:SIZE]:
            raise ArtifactError("the file's header is damaged; compile the model again")
        if total != file_size:
            raise ArtifactError(f"the file has {file_size} bytes, its header says {total}; it is cut short or was "
                                "added to: compile the model again")
        if offset < SIZE or offset + length != total:
            raise ArtifactError("the file's manifest does not lie where it must; compile the model again")
        return header
