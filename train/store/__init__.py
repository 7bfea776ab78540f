"""Atomic files, locks and fingerprints of what training makes."""
