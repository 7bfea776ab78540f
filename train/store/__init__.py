"""Locks on folders, and fingerprints of data, models and settings."""
