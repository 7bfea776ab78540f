"""Decoders other than Dynadiff, one folder each."""
