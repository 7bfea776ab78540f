"""Causal preprocessing: raw rows of ROI voxels to z-scores, volume by volume."""
