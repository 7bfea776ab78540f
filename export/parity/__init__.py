"""Parity: how close each step of an export stays to the step before."""
