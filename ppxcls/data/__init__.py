"""Data sets, transforms and batches."""

import os

# OpenCV reads this limit when it is imported. It refuses images with more pixels before it allocates their
# memory.
os.environ.setdefault(
    "OPENCV_IO_MAX_IMAGE_PIXELS", str(178_956_970)
)  # 512 MiB decoded; Pillow warns from there on as well
# Its own messages about damaged files repeat ours, on several lines.
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
