"""Folders that no other user can change: caches whose content is trusted.

The rule for a folder: it belongs to this user or to root, nobody else can write to it, and the same holds for
all folders above it. A folder with a sticky bit, such as ``/tmp``, may be above it, because only the owner of
an entry can replace it there.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
from pathlib import Path

from ppxcls.system.errors import UserError
from ppxcls.system.logs import warn_once

_HAS_OWNERS = hasattr(os, "getuid")  # Windows has access lists instead, and profiles that are private
_ROOT = 0
_UNMAPPED_USER = 65534  # in a container, the owner of files whose owner has no number there
_ACCESS_LIST = "system.posix_acl_access"


class UnsafeFolderError(UserError):
    """Another user could change the files of a folder. The message gives the folder and the reason."""


def own_folder(folder: str | Path) -> Path:
    """Creates a folder that only this user can enter, if it does not exist, and checks that it is safe.

    Returns:
        Its path without links.

    Raises:
        OSError: it can't be created, or it can't be written to.
        UnsafeFolderError: another user could change its files.
    """
    path = Path(os.path.realpath(folder))
    missing_folders = [path] if not path.is_dir() else []
    while missing_folders and not missing_folders[-1].parent.is_dir():
        missing_folders.append(missing_folders[-1].parent)
    existing_folder = missing_folders[-1].parent if missing_folders else path
    if not os.access(existing_folder, os.W_OK | os.X_OK):
        raise OSError(errno.EACCES, "it can't be written to", str(existing_folder))
    _check(existing_folder)
    for new_folder in reversed(missing_folders):
        new_folder.mkdir(mode=0o700, exist_ok=True)  # another process may create it at the same time
    if missing_folders:
        _check(path)
    return path


def _check(folder: Path) -> None:
    if (problem := folder_problem(folder)) is not None:
        raise UnsafeFolderError(problem)


def cache_places(name: str) -> list[str]:
    """Returns where a cache may be, in order of preference, whether it exists or not.

    Args:
        name: name of the cache, such as ``packs``.
    """
    homes = [os.environ.get("XDG_CACHE_HOME", ""), os.path.join(os.path.expanduser("~"), ".cache")]
    return [os.path.join(home, "ppxcls", name) for home in homes if os.path.isabs(home)]


@functools.cache
def cache_folder(name: str, wanted_folder: str | None = None) -> Path | None:
    """Returns a folder for a cache that no other user can change.

    Args:
        name: name of the cache, such as ``packs``. Without another folder, it is in ``ppxcls`` in
            ``XDG_CACHE_HOME`` or ``~/.cache``.
        wanted_folder: folder that somebody has chosen; it is used if it is safe.

    Returns:
        The folder; None if there is no safe one. If it is not the first choice, a warning gives the reason.
    """
    reasons = []
    for place in [*([wanted_folder] if wanted_folder else []), *cache_places(name)]:
        try:
            folder = own_folder(place)
        except (OSError, ValueError, UnsafeFolderError) as error:  # a ValueError for a NUL in the name
            reasons += [str(error)] if isinstance(error, UnsafeFolderError) else []
            continue
        if reasons:
            warn_once(f"{reasons[0]}, so {folder} is used for the cache of {name}")
        return folder
    if reasons:
        warn_once(f"{reasons[0]}, and there is no other folder for the cache of {name}")
    return None


def folder_problem(folder: Path) -> str | None:
    """Returns how another user could change the files of a folder; None if nobody can.

    Args:
        folder: absolute path without links.
    """
    if not _HAS_OWNERS:
        return None
    for path in (folder, *folder.parents):
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode):
            return f"{path} is not a folder"
        is_sticky = path != folder and bool(status.st_mode & stat.S_ISVTX)
        owners = _trusted_users() if path == folder else _trusted_users() | _unknown_owner_of_root()
        if status.st_uid not in owners:
            return f"{path} belongs to {user_name(status.st_uid)}"
        if not is_sticky and (who := _other_writers(status, path)) is not None:
            return f"{path} can be written by {who}"
    return None


def file_problem(status: os.stat_result) -> str | None:
    """Returns why the content of an open file of a safe folder is not to be trusted; None if it is.

    Args:
        status: result of ``os.fstat``.
    """
    if not stat.S_ISREG(status.st_mode):
        return "it is not a regular file"
    if not _HAS_OWNERS:
        return None
    if status.st_uid not in _trusted_users():
        return f"it belongs to {user_name(status.st_uid)}"
    who = _other_writers(status, None)
    return None if who is None else f"it can be written by {who}"


def _trusted_users() -> set[int]:
    return {os.getuid(), _ROOT}


@functools.cache
def _unknown_owner_of_root() -> frozenset[int]:
    """Returns the owner that root's folders seem to have in a container in which root has no number."""
    try:
        with open("/proc/self/uid_map", encoding="utf-8") as file:
            ranges = [tuple(map(int, line.split())) for line in file]
    except (OSError, ValueError):
        return frozenset()
    has_root = any(first <= _ROOT < first + count for _, first, count in ranges)
    return frozenset() if has_root else frozenset([_UNMAPPED_USER])


def _other_writers(status: os.stat_result, path: Path | None) -> str | None:
    """Returns who can write to a file or a folder beside its owner; None for nobody."""
    if status.st_mode & stat.S_IWOTH:
        return "everybody"
    if status.st_mode & stat.S_IWGRP and not (
        _is_private_group(status.st_gid) and (path is None or not _has_access_list(path))
    ):
        return f"group {status.st_gid}"
    return None


@functools.cache
def _is_private_group(group: int) -> bool:
    """True if a group has no other members, such as the group that many systems give to each user."""
    import grp
    import pwd

    try:
        entry, user = grp.getgrgid(group), pwd.getpwuid(os.getuid())
    except KeyError:  # the user or the group has no name, as in many containers
        return group == os.getgid() == os.getuid() or group == _ROOT == os.getgid()
    is_alone = set(entry.gr_mem) <= {user.pw_name, "root"}
    return is_alone and (group == _ROOT or (entry.gr_name == user.pw_name and group == user.pw_gid))


def _has_access_list(path: Path) -> bool:
    """True if an access list gives the group's permission to other users."""
    try:
        return bool(os.getxattr(path, _ACCESS_LIST))
    except (OSError, AttributeError):  # there is none, or the system has none
        return False


def user_name(number: int) -> str:
    """Returns a user's name for a message, or the number if the name is not known."""
    import pwd

    try:
        return f"user {pwd.getpwuid(number).pw_name}"
    except KeyError:
        return f"user {number}"
