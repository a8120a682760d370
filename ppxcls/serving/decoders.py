"""Decodes pictures in processes of their own, each of which has a time limit and can be ended."""

from __future__ import annotations

import contextlib
import mmap
import os
import queue
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ppxcls.data.decode import RGB
from ppxcls.data.errors import DataError
from ppxcls.data.picture_headers import PictureLimits, check_scans, picture_size
from ppxcls.data.pixel_format import PixelFormat
from ppxcls.serving.decoder_worker import ANSWER, FAILURE, MAX_MESSAGE_BYTES, PIXELS, READY, REQUEST
from ppxcls.system.arrays import Array
from ppxcls.system.current_folder import isolated_command
from ppxcls.system.errors import UserError
from ppxcls.system.temporary_folder import temporary_folder

_CODE = """
from ppxcls.serving.decoder_worker import run_decoder
run_decoder({folder}, {descriptor}, **{options})
"""
# All that a process gets of the server's environment: what libraries need to be found, and nothing secret.
_VARIABLES = (
    *("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "LANG", "LC_ALL"),
    "OPENCV_IO_MAX_IMAGE_PIXELS",  # --pixels may be above OpenCV's own limit
)
_START_SECONDS = 60.0  # for the imports of a process
_POLL_SECONDS = 0.05  # between two looks at the time limits
_END_SECONDS = 5.0  # for the end of a killed process
_KEPT_BYTES = 8 << 20  # shared memory that a process keeps after a picture
_PIPE_BYTES = 1 << 20  # most encoded pictures fit, so that neither side waits for the other
_BUSY_SHARE = 5  # part of the time limit that a picture gets while others wait


class DecodeError(UserError, ValueError):
    """The picture can't be decoded."""


class SlowDecodeError(UserError):
    """The picture takes long, and others wait; or the server ends."""


class Decoder:
    """One process that decodes pictures, one after the other.

    Args:
        folder: folder for its temporary files. It is created here.
        limits: limits of a picture.
        max_file: largest size of an encoded picture, in bytes.
        seconds: time limit of a picture, in seconds.
        pixel_format: channels and bits of the decoded pictures.
    """

    def __init__(
        self,
        folder: Path,
        limits: PictureLimits,
        *,
        max_file: int,
        seconds: float,
        pixel_format: PixelFormat = RGB,
    ) -> None:
        folder.mkdir(mode=0o700)
        self._folder, self._limits = folder, limits
        self._pixel_format = pixel_format
        self.started_at: float | None = None  # time at which the present picture began
        self._is_ready = False
        self._start_deadline: float | None = None  # set when something waits for the process
        self._map, descriptor = _new_map(pixel_format.pixel_bytes * limits.pixels)
        options = {
            "pixels": limits.pixels,
            "decoded_bytes": limits.decoded_bytes,
            "max_file": 2 * max_file + (1 << 20),
            "seconds": seconds,
            "pixel_format": tuple(pixel_format),
        }
        code = _CODE.format(folder=ascii(str(folder)), descriptor=descriptor, options=options)
        environment = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        environment |= dict.fromkeys(("TMPDIR", "TEMP", "TMP", "OPENCV_TEMP_PATH"), str(folder))
        try:
            self._process = subprocess.Popen(  # noqa: S603  our own code
                isolated_command(code),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env=environment,
                pass_fds=(descriptor,) if descriptor >= 0 else (),
            )
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        _enlarge(self._process.stdin)

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self._process.pid

    @property
    def is_stuck(self) -> bool:
        """True if something has been waiting too long for the process to be ready."""
        deadline = self._start_deadline
        return not self._is_ready and deadline is not None and time.monotonic() > deadline

    @property
    def has_ended(self) -> bool:
        """True if the process has ended."""
        return self._process.poll() is not None

    def wait_until_ready(self) -> None:
        """Waits for the imports of the process.

        Raises:
            EOFError: the process has ended.
        """
        if not self._is_ready:
            self._start_deadline = time.monotonic() + _START_SECONDS
            kind, _, _ = ANSWER.unpack(self._read(ANSWER.size))
            if kind != READY:
                raise EOFError
            self._is_ready = True

    def decode(self, data: bytes) -> Array:
        """Decodes a picture.

        Returns:
            [H, W, C] with the channels and bits of the format, RGB or RGBA.

        Raises:
            DecodeError: the picture can't be decoded, or has too many pixels.
            EOFError, OSError: the process has ended.
        """
        stdin = self._process.stdin
        assert stdin
        stdin.write(REQUEST.pack(len(data)))
        stdin.write(data)
        stdin.flush()
        kind, height, width = ANSWER.unpack(self._read(ANSWER.size))
        if kind == FAILURE and height <= MAX_MESSAGE_BYTES:
            raise DecodeError(self._read(height).decode("utf-8", "replace") or "not enough memory")
        # A decoder with a fault may do anything, so its answers are checked as a client's.
        if kind != PIXELS or not 0 < height * width <= self._limits.pixels:
            raise EOFError
        size = self._pixel_format.pixel_bytes * height * width
        if self._map is None:
            content = self._read(size)
        else:
            content = self._map[:size]
            if size > _KEPT_BYTES and hasattr(mmap, "MADV_REMOVE"):
                self._map.madvise(mmap.MADV_REMOVE, 0, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
        return np.frombuffer(content, self._pixel_format.dtype).reshape(height, width, -1)

    def _read(self, size: int) -> bytes:
        stdout = self._process.stdout
        assert stdout
        content = stdout.read(size)
        if len(content) < size:
            raise EOFError
        return content

    def kill(self) -> None:
        """Ends the process at once."""
        self._process.kill()

    def close(self) -> None:
        """Ends the process and removes its files."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        pipes: tuple[BinaryIO | None, ...] = (self._process.stdin, self._process.stdout)  # type: ignore[assignment]
        for pipe in pipes:
            with contextlib.suppress(OSError):  # what is left in its buffer can't be written any more
                if pipe:
                    pipe.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def outcome(self) -> str:
        """Returns how the process ended, in words."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(_END_SECONDS)
            if code < 0:
                with contextlib.suppress(ValueError):
                    return signal.Signals(-code).name
        return "an error"


def _enlarge(pipe: object) -> None:
    """Lets a pipe hold more bytes, on systems that can."""
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)  # type: ignore[call-overload]


def _new_map(size: int) -> tuple[mmap.mmap | None, int]:
    """Returns shared memory for pixels and its descriptor; None and -1 on systems without it.

    Only the pages that are written take memory. The size is sealed, because a process that could make it
    smaller could crash the server.
    """
    if not hasattr(os, "memfd_create"):
        return None, -1
    import fcntl

    descriptor = os.memfd_create("ppxcls", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    if hasattr(fcntl, "F_ADD_SEALS"):
        fcntl.fcntl(
            descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        )
    return mmap.mmap(descriptor, size), descriptor


class DecoderPool:
    """Processes that decode pictures. One that has crashed or was ended is replaced.

    Args:
        count: number of processes.
        limits: limits of a picture.
        max_file: largest size of an encoded picture, in bytes.
        seconds: time limit of a picture, in seconds. While others wait, it is a fifth of it.
        pixel_format: channels and bits of the decoded pictures.
    """

    def __init__(
        self,
        count: int,
        limits: PictureLimits,
        *,
        max_file: int,
        seconds: float,
        pixel_format: PixelFormat = RGB,
    ) -> None:
        self.count = count
        self._limits, self._max_file = limits, max_file
        self._pixel_format = pixel_format
        self._seconds = seconds
        self._files = contextlib.ExitStack()  # removes the folder
        self._folder = self._files.enter_context(temporary_folder())
        self._lock = threading.Lock()
        self._numbers = iter(range(1 << 62))
        self._is_closed = False
        self._waiting_count = 0
        self.has_waiting: Callable[[], bool] = lambda: False  # pictures that wait before they come here
        self._slow_reasons: dict[Decoder, Exception] = {}
        self._decoders: set[Decoder] = set()
        self._idle: queue.LifoQueue[Decoder] = queue.LifoQueue()
        for _ in range(count):
            self._idle.put(self._new_decoder())
        self._watcher = threading.Thread(target=self._watch, name="ppxcls-decoders", daemon=True)
        self._watcher.start()

    def _new_decoder(self) -> Decoder:
        with self._lock:
            if self._is_closed:
                raise SlowDecodeError("the server is stopping")
            folder = self._folder / str(next(self._numbers))
            decoder = Decoder(
                folder,
                self._limits,
                max_file=self._max_file,
                seconds=self._seconds,
                pixel_format=self._pixel_format,
            )
            self._decoders.add(decoder)
        return decoder

    def wait_until_ready(self) -> None:
        """Waits for the first process.

        Raises:
            DataError: it can't start.
        """
        decoder = self._idle.get()
        try:
            decoder.wait_until_ready()
        except EOFError:
            raise DataError(f"the process that decodes images can't start: {decoder.outcome()}") from None
        finally:
            self._idle.put(decoder)

    def decode(self, data: bytes) -> Array:
        """Decodes a picture; several threads may call it.

        Returns:
            [H, W, C] with the channels and bits of the format, RGB or RGBA.

        Raises:
            DecodeError: the picture can't be decoded, is too large, or takes too long.
            SlowDecodeError: the picture takes long and others wait, or the server ends.
        """
        size = picture_size(data)
        try:
            check_scans(data)
            if size is not None:
                self._limits.check(size)
        except ValueError as error:
            raise DecodeError(str(error)) from None
        with self._lock:
            self._waiting_count += 1
        decoder = self._idle.get()
        with self._lock:
            self._waiting_count -= 1
        try:
            decoder = self._living(decoder)
            decoder.started_at = time.monotonic()
            return decoder.decode(data)
        except (EOFError, OSError):
            raise self._end_reason(decoder) from None
        finally:
            decoder.started_at = None
            self._idle.put(decoder)

    def _living(self, decoder: Decoder) -> Decoder:
        """Returns the decoder, or a new one in its place if its process has ended."""
        for _ in range(2):
            if decoder.has_ended or decoder in self._slow_reasons:
                self._discard(decoder)
                decoder = self._new_decoder()
            with contextlib.suppress(EOFError):
                decoder.wait_until_ready()
                return decoder
        return decoder

    def _discard(self, decoder: Decoder) -> None:
        with self._lock:
            self._decoders.discard(decoder)
            self._slow_reasons.pop(decoder, None)
        decoder.close()

    def _end_reason(self, decoder: Decoder) -> Exception:
        """Returns the error for a picture whose process has ended."""
        decoder.kill()  # its answer may have been wrong
        with self._lock:
            if self._is_closed:
                return SlowDecodeError("the server is stopping")
            reason = self._slow_reasons.get(decoder)
        return reason or DecodeError(f"can't decode the image: the decoder ended with {decoder.outcome()}")

    def _watch(self) -> None:
        """Ends the processes that take too long to start, or whose pictures take too long."""
        while not self._is_closed:
            time.sleep(_POLL_SECONDS)
            time_s = time.monotonic()
            with self._lock:
                has_waiting = self._waiting_count > 0 or self.has_waiting()
                for decoder in self._decoders:
                    if decoder.is_stuck:
                        decoder.kill()  # whoever waits for it sees its end
                    start = decoder.started_at
                    if start is None or decoder in self._slow_reasons:
                        continue
                    if time_s - start > self._seconds:
                        reason: Exception = DecodeError(f"decoding takes more than {self._seconds:g} s")
                    elif has_waiting and time_s - start > self._seconds / _BUSY_SHARE:
                        reason = SlowDecodeError("the image takes long to decode, and others wait; try later")
                    else:
                        continue
                    self._slow_reasons[decoder] = reason
                    decoder.kill()

    def close(self) -> None:
        """Ends all processes, also those that decode, and removes their files."""
        with self._lock:
            self._is_closed = True
            decoders = list(self._decoders)
        for decoder in decoders:
            decoder.kill()
        for decoder in decoders:
            decoder.close()
        with contextlib.suppress(OSError):  # a file that a process still holds
            self._files.close()
