"""Numbers of the JPEG format (ITU-T T.81), and the row of the table in a packed JPEG.

They are separate from the kernels, because the kernels import numba.
"""

import numpy as np

COEFFICIENTS = 64  # in a block
MARKER = 0xFF  # first byte of a marker; in coded data, a zero follows each such byte
HUFFMAN_TABLE, END, FIRST_RESTART = 0xC4, 0xD9, 0xD0
LONGEST_CODE = 16  # bits
LONGEST_DC, LONGEST_AC = 11, 10  # bits that follow a symbol
MIN_DC, MAX_DC = -1024, 1023  # range of DC: the difference of any two values has a code
# Length in bits, and the DC of the three components before the segment.
SEGMENT = np.dtype([("bits", "<u2"), ("dc", "<i2", 3)])
