"""The bundle: one folder with everything the runtime knows about a subject and a model.

May import ``wire``, ``errors`` and ``atomic``.
"""
