"""Files as people have them that are not what their names say."""

from __future__ import annotations

LFS_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a2146" * 8 + b"\nsize 12345\n"
)
