"""Data sets, transforms and batches."""

import os

from ppxcls.system.variables import require_valid

require_valid()  # OpenCV ends the process at a value that it does not understand
# OpenCV reads this limit when it is imported. It refuses larger images before it allocates memory for them.
# This number of pixels is 512 MiB when decoded. By default, Pillow also raises an error above it.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(178_956_970))
# OpenCV's own messages about damaged files repeat ours, on several lines.
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
