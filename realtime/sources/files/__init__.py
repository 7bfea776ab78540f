"""Reads volumes from NIfTI and DICOM files that a scanner exports into a folder.

May import ``wire``, ``errors``, ``bundle`` and the rest of ``sources``.
"""
