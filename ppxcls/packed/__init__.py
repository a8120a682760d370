"""Packed data sets: many images in a few files, of which only the parts that are needed are decoded."""
