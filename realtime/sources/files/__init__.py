"""Volumes from files that a scanner exports: NIfTI and DICOM in a folder."""
