"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic_write(path: str | os.PathLike[str], *, overwrite: bool = True) -> Iterator[Path]:
    """A temporary name beside `path` to write a file to; it gets the name `path` when the block ends without error.

    The file is flushed to the disk before it is renamed, and its permissions follow the umask (writers that make
    private temporary files, as safetensors does, would leave 0600). When the block raises, the temporary file is
    removed and whatever was at `path` is untouched.

    The name ends as `path` does, since some writers choose the format by the suffix. Raises FileExistsError where
    `overwrite` is False and the path exists, at the start or by the time of the renaming.
    """
    path = Path(path)
    if not overwrite and os.path.lexists(path):
        raise FileExistsError(f"{path} exists")
    temporary = path.with_name(f".{path.name[:80]}.{secrets.token_hex(8)}.tmp{path.suffix}")
    try:
        yield temporary
        if not temporary.is_file():
            raise FileNotFoundError(f"nothing was written for {path}")
        os.chmod(temporary, 0o666 & ~_umask())
        _sync(temporary)
        if overwrite:
            os.replace(temporary, path)
        else:
            _rename_without_replacing(temporary, path)
        _sync_folder(path.parent)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


@contextmanager
def atomic_folder(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside `path` to fill; it gets the name `path` when the block ends without error.

    With `overwrite` a folder or file that was there is moved aside first and deleted last, so that a crash between
    the two leaves the old content under a name `.NAME.*.old` and never half of each.
    """
    path = Path(path)
    if not overwrite and os.path.lexists(path):
        raise FileExistsError(f"{path} exists")
    token = secrets.token_hex(8)
    temporary = path.with_name(f".{path.name[:80]}.{token}.tmp")
    aside = path.with_name(f".{path.name[:80]}.{token}.old")
    temporary.mkdir()
    try:
        yield temporary
        for folder, _, names in os.walk(temporary, topdown=False):
            for name in names:
                os.chmod(os.path.join(folder, name), 0o666 & ~_umask())
                _sync(Path(folder, name))
            _sync_folder(Path(folder))
        if os.path.lexists(path):
            if not overwrite:
                raise FileExistsError(f"{path} appeared while it was being written")
            os.rename(path, aside)
        try:
            os.rename(temporary, path)
        except OSError:
            if os.path.lexists(aside):
                os.rename(aside, path)
            raise
        _sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if aside.is_dir() and not aside.is_symlink():
        shutil.rmtree(aside)
    else:
        aside.unlink(missing_ok=True)


def _rename_without_replacing(source: Path, target: Path) -> None:
    """A hard link fails where the name is taken; not every filesystem has them."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise FileExistsError(f"{target} appeared while it was being written") from None
    except OSError:
        if os.path.lexists(target):
            raise FileExistsError(f"{target} appeared while it was being written") from None
        os.rename(source, target)


def _umask() -> int:
    """The process's umask. Setting it is the only portable way to read it; Linux shows it without."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("Umask:"):
                    return int(line.split()[1], 8)
    except OSError:
        pass
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Makes the renaming itself durable. Folders cannot be opened on Windows; some filesystems refuse the sync."""
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
