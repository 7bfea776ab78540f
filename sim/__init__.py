"""The simulator: scenes, a simulated cortex that writes synthetic subjects, a scanner that replays runs.

May import ``nsd`` and, of ``realtime``, the wire messages and shared helpers.
"""
