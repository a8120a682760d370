"""Copies one file from a web server into a ``.part`` file, which goes on where it was interrupted."""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from ppxcls.checkpoints.files import MAX_FILE_BYTES
from ppxcls.published.attempts import repeated
from ppxcls.published.web import BrokenTransferError, FetchError, ServerAnswer, ask
from ppxcls.system.atomic_files import named_errors, read_regular, write_text
from ppxcls.system.json_text import is_count, json_text, read_json
from ppxcls.system.open_folder import OpenFolder

_SLOW_SECONDS, _MIN_BYTES_PER_SECOND = 60.0, 1000  # seconds at any rate, and the rate that is needed then
_BLOCK_BYTES = 1 << 18
_SPARE_BYTES = 16 << 20  # that stay free on the disk
_MAX_JOURNAL_BYTES = 1 << 14
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")
_STRONG_TAG = re.compile(r'"[\x21\x23-\x7e]{1,200}"')
_PAGES = ("text/html", "application/xhtml+xml")


class Transfer:
    """A file that is being copied.

    Args:
        address: address of the file.
        part: file to write. If it exists with its journal, the transfer goes on at its end.
        label: name of the file for messages.
        size: size that the publisher states; None for none.
        has_digest: True if the whole file is compared with a published digest, so that parts of two versions
            of the file can't stay together.
    """

    def __init__(
        self, address: str, part: Path, *, label: str, size: int | None, has_digest: bool = False
    ) -> None:
        self._address = address
        self._part = part
        self._label = label
        self._size = size
        self._has_digest = has_digest
        self._bar: Any = None
        self.linked_sha256: str | None = None
        self.has_resumed = False

    def run(self) -> None:
        """Copies the file, with new attempts if the connection breaks.

        Raises:
            FetchError: the server has no such file, refuses it, or breaks off again and again.
            OSError: the file can't be written.
        """
        self.has_resumed = False
        repeated(
            self._run_once,
            self._byte_count,
            label=self._label,
            address=self._address,
            advice="the same command goes on with it later",
        )

    def remove(self) -> None:
        """Removes the part and its journal."""
        for file in (self._part, self._journal):
            file.unlink(missing_ok=True)

    @property
    def _journal(self) -> Path:
        return self._part.with_name(f"{self._part.name}.source")

    def _byte_count(self) -> int:
        try:
            return os.lstat(self._part).st_size
        except OSError:
            return 0

    def _run_once(self) -> None:
        """Asks the server once, and copies what it sends.

        Raises:
            BrokenTransferError: it sends less than the whole file.
        """
        offset, tag = self._start()
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        if offset and tag:
            headers["If-Range"] = tag
        answer = ask(self._address, headers)
        try:
            if offset and not self._continues(answer, offset):
                offset = 0
                if answer.code != 200:  # the server has another file, or counts in another way
                    self.remove()
                    answer.close()
                    answer = ask(self._address)
            if answer.code != 200 and not offset:
                raise FetchError(
                    f"{self._address}: the server sends a part of the file that was not asked for"
                )
            self.has_resumed |= offset > 0
            self._check_kind(answer)
            total = self._total(answer, offset)
            self._note(answer, total, is_new=not offset)
            self._copy(answer, offset=offset, total=total)
        finally:
            answer.close()
            if self._bar is not None:
                self._bar.close()
                self._bar = None

    def _start(self) -> tuple[int, str]:
        """Returns the number of bytes that are there, and the tag of their version; 0 to start anew."""
        count = self._byte_count()
        journal = self._read_journal()
        is_usable = count > 0 and journal.get("address") == self._address
        tag = str(journal.get("tag") or "")
        if not is_usable or not (tag or self._has_digest) or count >= (self._size or MAX_FILE_BYTES):
            self.remove()
            return 0, ""
        return count, tag

    def _read_journal(self) -> dict[str, Any]:
        try:
            journal = read_json(read_regular(self._journal, _MAX_JOURNAL_BYTES, follows_links=False))
        except (OSError, ValueError):
            return {}
        is_valid = isinstance(journal, dict) and isinstance(journal.get("tag"), str | None)
        return journal if is_valid else {}

    def _continues(self, answer: ServerAnswer, offset: int) -> bool:
        """True if an answer is the rest of the file, from its part on."""
        match = _CONTENT_RANGE.fullmatch(answer.header("Content-Range"))
        if answer.code != 206 or match is None:
            return False
        first, last, total = map(int, match.groups())
        journal_total = self._read_journal().get("size")
        is_same = not is_count(journal_total) or journal_total == total
        tag, journal_tag = _tag(answer), self._read_journal().get("tag")
        return first == offset and last == total - 1 and is_same and (not tag or tag == journal_tag)

    def _check_kind(self, answer: ServerAnswer) -> None:
        """Raises FetchError for a page in the place of a file."""
        kind = answer.header("Content-Type").partition(";")[0].strip().lower()
        if kind in _PAGES:
            raise FetchError(
                f"{self._address}: the server sends a page in the place of the file, such as a log-in of the "
                "network; open the address in a browser, and give the path of the file"
            )

    def _total(self, answer: ServerAnswer, offset: int) -> int | None:
        """Returns the size of the whole file, as the server states it; None if it sends parts without a size.

        Raises:
            FetchError: the size is not what it should be, or can't be known.
        """
        self.linked_sha256 = _linked_sha256(answer)
        length = answer.length
        is_chunked = answer.header("Transfer-Encoding").strip().lower() == "chunked"
        if length is None or is_chunked:
            if not is_chunked:
                raise FetchError(f"{self._address}: refused, the server does not state the size of the file")
            return self._size
        total = offset + length
        if self._size is not None and total != self._size:
            raise FetchError(
                f"{self._address}: refused, the server has {total:,} bytes, and the published file has "
                f"{self._size:,}"
            )
        if total > MAX_FILE_BYTES:
            raise FetchError(
                f"{self._address}: refused, {total:,} bytes; a file of weights may have {MAX_FILE_BYTES:,}"
            )
        free_bytes = shutil.disk_usage(self._part.parent).free
        if length + _SPARE_BYTES > free_bytes:
            raise FetchError(
                f"{self._label}: needs {length / 1e6:,.0f} MB in {self._part.parent}, and "
                f"{free_bytes / 1e6:,.0f} MB are free; PPXCLS_CACHE may name a folder on another disk"
            )
        return total

    def _note(self, answer: ServerAnswer, total: int | None, *, is_new: bool) -> None:
        """Writes down which version of the file the part belongs to."""
        if is_new:
            self.remove()
            values = {"address": self._address, "tag": _tag(answer) or None, "size": total}
            write_text(self._journal, json_text(values, is_ascii=True) + "\n")

    def _copy(self, answer: ServerAnswer, *, offset: int, total: int | None) -> None:
        self._bar = tqdm(
            total=total,
            initial=offset,
            unit="B",
            unit_scale=True,
            disable=None,
            leave=False,
            desc=self._label[:40],
        )
        with OpenFolder(self._part.parent) as folder, named_errors(self._part, self._part.name):
            flags = os.O_WRONLY | os.O_CREAT | (0 if offset else os.O_TRUNC)
            with open(folder.open(self._part.name, flags, 0o600), "wb") as stream:
                stream.seek(offset)
                count = self._copy_blocks(answer, stream, offset=offset, total=total)
        if total is not None and count < total:
            raise BrokenTransferError(f"the connection broke at {count:,} of {total:,} bytes")

    def _copy_blocks(self, answer: ServerAnswer, stream: BinaryIO, *, offset: int, total: int | None) -> int:
        """Copies an answer to its end, and returns the size of the part."""
        count, window_count = offset, 0
        window_start = time.monotonic()
        while block := answer.read(_BLOCK_BYTES):
            count += len(block)
            if count > (total or MAX_FILE_BYTES):
                self.remove()
                raise FetchError(f"{self._address}: refused, the server sends more than a file may have")
            stream.write(block)
            self._bar.update(len(block))
            window_count += len(block)
            seconds = time.monotonic() - window_start
            if seconds > _SLOW_SECONDS:
                if window_count < seconds * _MIN_BYTES_PER_SECOND:
                    raise BrokenTransferError(f"only {window_count:,} bytes in {seconds:.0f} s")
                window_count, window_start = 0, time.monotonic()
        return count


def _tag(answer: ServerAnswer) -> str:
    """Returns a strong tag of a version of a file; empty if the server states none."""
    tag = answer.header("ETag").strip()
    return tag if _STRONG_TAG.fullmatch(tag) else ""


def _linked_sha256(answer: ServerAnswer) -> str | None:
    """Returns the SHA-256 that the hub states for a large file; None if it states none."""
    text = answer.header("X-Linked-Etag").strip().strip('"')
    return text if re.fullmatch(r"[0-9a-f]{64}", text) else None
