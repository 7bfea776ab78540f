"""Engines, which run the graphs of a bundle: their contract, their signature, and the choice of one."""
