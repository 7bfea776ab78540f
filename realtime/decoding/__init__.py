"""Decoding: from a window of volumes to an image, and how long that may take."""
