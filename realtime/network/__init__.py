"""Addresses, CURVE keys and the publisher of frames.

May import ``events``, ``errors`` and ``atomic``.
"""
