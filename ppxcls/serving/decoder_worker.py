"""A process that decodes pictures for the server, and that the server can end at any time.

It reads pictures from its standard input and answers on its standard output, or in memory that it shares with
the server. It has no socket, no variables of the server's environment, and limits of memory and files.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import os
import shutil
import signal
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from ppxcls.data.pixel_format import PixelFormat

REQUEST = struct.Struct("!Q")  # bytes of the picture, which follows
ANSWER = struct.Struct("!cII")  # kind of the answer, then its height and width, or the length of its message
READY, PIXELS, FAILURE = b"R", b"P", b"E"
MAX_MESSAGE_BYTES = 2_000
_SPARE_BYTES = 768 << 20  # address space for what the decoders hold besides the picture
_LARGE_PICTURE_BYTES = 16 << 20  # after which memory goes back to the system
_MORE_SECONDS = 3  # after the time limit, if no server is left to end the process
_MAX_OPEN_FILES = 64
_NO_NEW_PRIVILEGES = 38  # of Linux's prctl


def run_decoder(
    folder: str,
    descriptor: int,
    *,
    pixels: int,
    decoded_bytes: int,
    max_file: int,
    seconds: float,
    pixel_format: tuple[int, int],
) -> None:
    """Decodes pictures until the standard input ends.

    Args:
        folder: folder for temporary files, which is emptied after each picture that leaves some.
        descriptor: descriptor of the shared memory for pixels; -1 to write them to the standard output.
        pixels: largest number of pixels of a picture.
        decoded_bytes: largest size of a picture as the decoders hold it, in bytes.
        max_file: largest size of a temporary file, in bytes.
        seconds: time limit of a picture, in seconds.
        pixel_format: channels and bits of the decoded pictures.
    """
    answers = os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "wb") as null_device:
        os.dup2(null_device.fileno(), 1)  # libraries print to it
    from ppxcls.data import decode
    from ppxcls.data.picture_headers import PictureLimits, picture_limits
    from ppxcls.data.pixel_format import PixelFormat

    decoded_format = PixelFormat(*pixel_format)
    decode.can_read_heic()
    pixel_map = mmap.mmap(descriptor, 0) if descriptor >= 0 else None
    _limit_this_process(2 * decoded_bytes + 2 * decoded_format.pixel_bytes * pixels + _SPARE_BYTES, max_file)
    answers.write(ANSWER.pack(READY, 0, 0))
    answers.flush()
    with picture_limits(PictureLimits(pixels, decoded_bytes, "the server's option --pixels")):
        while len(header := sys.stdin.buffer.read(REQUEST.size)) == REQUEST.size:
            data = sys.stdin.buffer.read(REQUEST.unpack(header)[0])
            _set_alarm(int(seconds) + _MORE_SECONDS)
            _answer(data, answers, pixel_map=pixel_map, pixel_format=decoded_format)
            _set_alarm(0)
            is_large = len(data) > _LARGE_PICTURE_BYTES
            del data
            if os.listdir(folder):
                _empty(folder)
            if is_large:
                _return_memory()
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # of the last process, if the server was killed
        os.rmdir(os.path.dirname(folder))


def _answer(
    data: bytes, answers: BinaryIO, *, pixel_map: mmap.mmap | None, pixel_format: PixelFormat
) -> None:
    from ppxcls.data.decode import decode_image

    try:
        image = decode_image(data, pixel_format)
    except (ValueError, OSError) as error:
        _fail(answers, " ".join(str(error).split()))
        return
    except MemoryError:
        _fail(answers, "the image takes too much memory to decode")
        return
    except Exception as error:
        _fail(answers, f"the image can't be decoded: {type(error).__name__}")
        return
    height, width = image.shape[:2]
    if pixel_map is None:
        answers.write(ANSWER.pack(PIXELS, height, width) + image.tobytes())
    else:
        np.frombuffer(pixel_map, image.dtype, image.size)[:] = image.reshape(-1)
        answers.write(ANSWER.pack(PIXELS, height, width))
    answers.flush()
    is_large = image.nbytes > _LARGE_PICTURE_BYTES
    del image
    if is_large:
        _return_memory()


def _fail(answers: BinaryIO, message: str) -> None:
    text = message.encode("utf-8", "replace")[:MAX_MESSAGE_BYTES]
    answers.write(ANSWER.pack(FAILURE, len(text), 0) + text)
    answers.flush()


def _set_alarm(seconds: int) -> None:
    """Lets the system end this process after a time, whatever it does then; 0 for no end."""
    if hasattr(signal, "alarm"):
        signal.alarm(seconds)


def _limit_this_process(spare_bytes: int, max_file: int) -> None:
    """Limits memory, files and privileges, as far as the system can."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # a terminal's Ctrl-C is the server's
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if sys.platform != "linux":
        return
    import resource

    with contextlib.suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limits = (
            (resource.RLIMIT_AS, pages * resource.getpagesize() + spare_bytes),
            (resource.RLIMIT_FSIZE, max_file),
            (resource.RLIMIT_NOFILE, _MAX_OPEN_FILES),
            (resource.RLIMIT_CORE, 0),
        )
        for kind, limit in limits:
            _, hard_limit = resource.getrlimit(kind)
            value = limit if hard_limit == resource.RLIM_INFINITY else min(limit, hard_limit)
            resource.setrlimit(kind, (value, value))
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    with contextlib.suppress(OSError):  # if the memory is full, the system ends this process first
        Path("/proc/self/oom_score_adj").write_text("800", encoding="ascii")


def _return_memory() -> None:
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # the C library is not glibc
        ctypes.CDLL(None).malloc_trim(0)


def _empty(folder: str) -> None:
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                os.unlink(entry.path)
