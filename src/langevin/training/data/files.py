"""Files of a data set's folder: listed in a fixed order, and read only where they are what they seem."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from langevin.errors import DataError
from langevin.images.pixels import open_picture

PICTURES = (".png", ".webp", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".avif")
LARGEST_PICTURE = 64 * 2**20
LARGEST_TEXT = 2**20


@dataclass(frozen=True)
class Sample:
    """One picture that can be opened, and what is known of it."""

    key: str
    """Unique in the data set; the samples are put in the order of their keys."""
    record: Mapping[str, Any]
    place: str
    """What the picture is called in a message."""
    picture: Callable[[], Image.Image]
    """Raises DataError where it cannot be read."""


@dataclass(frozen=True)
class Listing:
    """The names of a folder's files, folders below included, hidden ones and what links to folders left out."""

    folder: Path
    names: Sequence[str]
    """Relative, with `/`, sorted."""
    links: Sequence[str]
    """Links to folders: they are not followed."""

    @property
    def pictures(self) -> list[str]:
        return [n for n in self.names if PurePosixPath(n).suffix.lower() in PICTURES]

    def read(self, name: str, limit: int) -> bytes:
        """The bytes of a file. DataError where it is missing, longer than `limit`, not a file, or outside the folder,
        by `..` or by a link."""
        try:
            path = (self.folder / name).resolve(strict=True)
            if not path.is_relative_to(self.folder.resolve()):
                raise DataError("it leads out of the data set's folder")
            if not path.is_file():  # a pipe would be waited for, a device never ends
                raise DataError("it is not a file")
            if (size := path.stat().st_size) > limit:
                raise DataError(f"{size} bytes, more than {limit}")
            return path.read_bytes()
        except FileNotFoundError:
            raise DataError("it does not exist") from None
        except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a name with a null byte
            raise DataError(str(getattr(error, "strerror", None) or error)) from None

    def text(self, name: str) -> str:
        """A UTF-8 text in one line. Raises DataError where it cannot be read or says nothing."""
        return one_line(self.read(name, LARGEST_TEXT))

    def sample(self, name: str, record: Mapping[str, Any]) -> Sample:
        """The sample of a picture file."""
        return Sample(name, record, name, lambda: open_picture(self.read(name, LARGEST_PICTURE)))


def list_files(folder: Path) -> Listing:
    """Everything below `folder`. Raises DataError where it is not a folder."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: give the one that holds the data set")
    names: list[str] = []
    links: list[str] = []
    for root, folders, files in os.walk(folder):
        place = Path(root).relative_to(folder)
        folders[:] = [f for f in folders if not f.startswith(".")]
        links += [(place / f).as_posix() for f in folders if (Path(root) / f).is_symlink()]
        names += [(place / f).as_posix() for f in files if not f.startswith(".")]
    return Listing(folder, sorted(names), sorted(links))


def one_line(data: bytes) -> str:
    """The text of a caption file: UTF-8, white space made single. Raises DataError for other bytes or none."""
    try:
        text = " ".join(data.decode("utf-8-sig").split())
    except UnicodeDecodeError:
        raise DataError("it is not UTF-8 text") from None
    if not text:
        raise DataError("it is empty")
    return text


def with_captions(record: dict[str, Any]) -> dict[str, Any]:
    """A record in which `caption` or `captions` may be a list of texts: `captions` is the list then, `caption` its
    first."""
    texts = record["caption"] if isinstance(record.get("caption"), list) else record.get("captions")
    if not isinstance(texts, list) or not texts:
        return record
    first = record["caption"] if isinstance(record.get("caption"), str) else texts[0]
    return {**record, "caption": first, "captions": texts}


def record_fault(record: Any) -> str | None:
    """What keeps a record from being used, if anything."""
    if not isinstance(record, dict) or not _says(record.get("caption")):
        return "no caption"
    texts = record.get("captions", [record["caption"]])
    if not isinstance(texts, list) or not texts or not all(map(_says, texts)):
        return "captions is not a list of texts"
    if not isinstance(record.get("keywords", []), list | None):
        return "keywords is not a list"
    return None


def _says(text: Any) -> bool:
    return isinstance(text, str) and bool(text.strip())
