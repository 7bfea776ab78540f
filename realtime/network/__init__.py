"""Addresses, CURVE keys and the publisher of frames.

May import ``events`` and ``errors``.
"""
