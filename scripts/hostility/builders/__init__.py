"""Builds files for the hostile cases, byte by byte, so that they can be wrong in any way."""
