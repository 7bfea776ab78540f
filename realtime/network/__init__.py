"""Addresses, CURVE keys and the publisher of frames."""
