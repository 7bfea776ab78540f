"""Decodes a window of volumes to an image, in the time there is, on one of several engines.

May import ``bundle`` and ``errors``.
"""
