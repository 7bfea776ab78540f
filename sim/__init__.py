"""The simulator: scenes, a simulated cortex that writes synthetic subjects, a scanner that replays runs.

May import ``nsd`` and ``realtime``.
"""
