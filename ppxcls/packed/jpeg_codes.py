"""Numbers of the JPEG format (ITU-T T.81), and of the table of a packed JPEG.

Without numba, which the kernels import.
"""

import numpy as np

COEFFICIENTS = 64  # of a block
MARKER = 0xFF  # the byte that begins a marker; it is followed by a zero in coded data
HUFFMAN_TABLE, END, FIRST_RESTART = 0xC4, 0xD9, 0xD0
LONGEST_CODE = 16  # bits
LONGEST_DC, LONGEST_AC = 11, 10  # bits behind a symbol
LEAST_DC, LARGEST_DC = -1024, 1023  # so that the difference of any two has a code
SEGMENT = np.dtype(
    [("bits", "<u2"), ("dc", "<i2", 3)]
)  # length in bits, and the DC of the three components before it
