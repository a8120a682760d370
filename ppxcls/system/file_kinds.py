"""Tells what a file is by its first bytes, for messages about files that can't be read.

No message contains any text of a file: a list from somebody else may name a private one.
"""

from __future__ import annotations

import re

HEIF_HINT = "pip install 'ppxcls[heif]'"
_HEADER_BYTES = 4096
_MAX_ERROR_BYTES = 200  # bytes of a text that are searched for the words of an error
_LFS_START = b"version https://git-lfs"
_CONVERT = "a format that is not supported; convert it"
_ERROR_TEXT = re.compile(rb"\b(?:error|not found|denied|forbidden|unauthorized|40[1349]|429|50[0234])\b")
# Images in other formats, by the first bytes of the file.
_IMAGE_KINDS = (
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", f"a JPEG XL image, {_CONVERT}"),
    (b"\xff\x0a", f"a JPEG XL image, {_CONVERT}"),
    (b"8BPS", f"a Photoshop file, {_CONVERT}"),
    (b"gimp xcf", f"a GIMP file, {_CONVERT}"),
    (b"v/1\x01", f"an OpenEXR image, {_CONVERT}"),
    (b"DDS ", f"a DDS texture, {_CONVERT}"),
    (b"\x00\x00\x01\x00", f"an icon, {_CONVERT}"),
    (b"FUJIFILMCCD-RAW", "a camera's raw image; develop it first"),
)
# Other files, by their first bytes.
_KINDS = (
    (_LFS_START, "a pointer of Git LFS (git lfs pull downloads the file itself)"),
    (b"/annex/objects/", "a pointer of git-annex (git annex get downloads the file itself)"),
    (b"%PDF", "a PDF document"),
    (b"%!PS", "a PostScript document"),
    (b"{\\rtf", "an RTF document"),
    (b"\xd0\xcf\x11\xe0", "a Microsoft Office document, or a cache of thumbnails"),
    (b"\x93NUMPY", "a numpy array"),
    (b"\x89HDF", "an HDF5 file"),
    (b"SQLite format 3", "an SQLite database"),
    (b"PAR1", "a Parquet table"),
    (b"PK\x03\x04", "a ZIP archive, or a document in one"),
    (b"PK\x05\x06", "an empty ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x7fELF", "a program"),
    (b"MZ\x90", "a program"),
    (b"\x1aE\xdf\xa3", "a WebM or Matroska video"),
    (b"FLV\x01", "a Flash video"),
    (b"\x00\x00\x01\xba", "an MPEG video"),
    (b"\x00\x00\x01\xb3", "an MPEG video"),
    (b"OggS", "an Ogg video or sound file"),
    (b"ID3", "an MP3 sound file"),
    (b"\x00\x05\x16\x07", "a file of attributes that macOS writes beside the real file"),
)
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_RIFF_KINDS = {b"AVI ": "an AVI video", b"WAVE": "a WAV sound file"}
# Containers that images share with other files: brand, or type of the first part.
_VIDEO_PARTS = (b"ftyp", b"moov", b"mdat", b"wide", b"skip")
_BASE64_IMAGES = (b"/9j/", b"iVBORw0KGgo", b"R0lGOD", b"UklGR")


def why_unreadable(data: bytes) -> str | None:
    """Tells what a file is that can't be decoded; None if its kind is unknown, or a supported format.

    Args:
        data: bytes of the file, or its first few thousand bytes.
    """
    header = bytes(data[:_HEADER_BYTES])
    if is_heic(header):
        return f"a HEIC image, which needs pillow-heif: {HEIF_HINT}"
    if is_avif(header):
        return "an AVIF image, which needs Pillow 11.3 or later: pip install 'pillow>=11.3'"
    if header[4:12] == b"ftypcrx ":
        return "a camera's raw image; develop it first"
    if header[128:132] == b"DICM":
        return f"a DICOM file, {_CONVERT}"
    for start, description in _IMAGE_KINDS:
        if header.startswith(start):
            return description
    kind = other_kind(header)
    return f"not an image, but {kind}" if kind else None


def other_kind(header: bytes) -> str | None:
    """Describes a file that is no image; None if its kind is unknown.

    Args:
        header: bytes of the file, or its first few thousand bytes.
    """
    header = bytes(header[:_HEADER_BYTES])
    for start, description in _KINDS:
        if header.startswith(start):
            return description
    if header[:4] == b"RIFF" and header[8:12] in _RIFF_KINDS:
        return _RIFF_KINDS[header[8:12]]
    if header[4:8] in _VIDEO_PARTS:
        return "an MP4 or QuickTime video"
    if header[257:262] == b"ustar":
        return "a tar archive"
    if len(header) > 1 and not any(header):
        return "a file of zeros"
    return _text_kind(header)


def is_heic(data: bytes) -> bool:
    """True if a file is a HEIC or HEIF image, as Apple's cameras write it."""
    return data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS and not is_avif(data)


def is_avif(data: bytes) -> bool:
    """True if a file is an AVIF image."""
    if data[4:8] != b"ftyp":
        return False
    length = min(int.from_bytes(data[:4], "big"), 256)
    compatible_brands = [data[i : i + 4] for i in range(16, length, 4)]
    return data[8:12] in (b"avif", b"avis") or (
        data[8:12] in (b"mif1", b"msf1") and b"avif" in compatible_brands
    )


def _text_kind(header: bytes) -> str | None:
    """Describes a file of text; None if the file is none."""
    if header.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "a text in UTF-16" if len(header) > 8 else None
    text = header.removeprefix(b"\xef\xbb\xbf").strip()
    if not text or not _is_text(text):
        return None
    lower_text = text.lower()
    if re.search(rb"<svg[\s>]", lower_text) and lower_text.startswith(b"<"):
        return "an SVG drawing, which has no pixels"
    if re.match(rb"<(!doctype html|html|head|body|script|meta)\b", _after_comments(lower_text)):
        return "an HTML page, such as an error page of a download"
    if lower_text.startswith(b"<?xml") or re.match(rb"<[a-z][\w:.-]*[\s>/]", lower_text):
        return "an XML text, such as an error message of a download"
    if lower_text.startswith(b"data:image/") or text.startswith(_BASE64_IMAGES):
        return "a text with an image in base64"
    is_like_error = _ERROR_TEXT.search(lower_text[:_MAX_ERROR_BYTES]) is not None
    kind = "a JSON text" if text[:1] in (b"{", b"[") and text[-1:] in (b"}", b"]") else "a text"
    return f"{kind}, such as an error message of a download" if is_like_error else kind


def _after_comments(text: bytes) -> bytes:
    """Returns a text without the HTML comments that it begins with.

    A regular expression that repeats a comment of any length would try every way to join the comments. A
    client can send a body of hundreds of them.
    """
    while text.startswith(b"<!--") and (end := text.find(b"-->", len(b"<!--"))) >= 0:
        text = text[end + len(b"-->") :].lstrip()
    return text


def _is_text(data: bytes) -> bool:
    """True if the bytes are printable characters in UTF-8; the last character may be cut off."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        if error.start < len(data) - 3:
            return False
        text = data[: error.start].decode()
    return all(c.isprintable() or c in "\n\r\t\f" for c in text)
