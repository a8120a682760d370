"""From list files to batches."""

import os

# Before OpenCV is imported, which reads it then: an image that says it has more pixels is refused before its memory is asked for.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(178_956_970))  # 512 MiB decoded; where Pillow begins to warn as well
