"""What a file is when it is not what it should be, told from its first bytes."""

from __future__ import annotations

import os
from pathlib import Path

from langevin.errors import CheckpointError

_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"RIFF", "a WebP picture or another RIFF file"),
    (b"GGUF", "a GGUF language model"),
    (b"ggml", "a GGML language model"),
    (b"%PDF", "a PDF document"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a Windows program"),
    (b"version https://git-lfs.github.com/spec/", "a git-lfs pointer, not the file itself: run `git lfs pull`"),
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself: run `git lfs pull`"),
)


def is_zip(head: bytes) -> bool:
    return head.startswith((b"PK\x03\x04", b"PK\x05\x06"))


def is_pickle(head: bytes) -> bool:
    """A bare pickle of protocol 2 to 5: the format of torch before 1.6."""
    return len(head) > 2 and head[0] == 0x80 and head[1] in (2, 3, 4, 5) and head[2:3] in (b"\x8a", b"}", b"c", b"\x95")


def foreign(head: bytes) -> str | None:
    """A few words for the beginning of a file that is no weight file. None: nothing known."""
    for magic, words in _MAGIC:
        if head.startswith(magic):
            return words
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "an HTML or XML page, probably a download's error page"
    if text.startswith((b"{", b"[")):
        return "JSON text"
    return None


def first_bytes(path: Path, count: int = 512) -> bytes:
    """The beginning of a regular file. CheckpointError, in words, where there is none to read."""
    try:
        if not path.is_file():
            what = "a folder" if path.is_dir() else "not a regular file" if path.exists() else "not there"
            raise CheckpointError(f"{path}: {what}; expected a weight file")
        with open(path, "rb") as file:
            head = file.read(count)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {os.strerror(error.errno or 0)}") from None
    if not head:
        raise CheckpointError(f"{path}: an empty file; expected weights; download it again")
    return head
