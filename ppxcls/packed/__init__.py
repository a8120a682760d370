"""Packed data sets: many images in a few large files, decoded only as far as needed."""
