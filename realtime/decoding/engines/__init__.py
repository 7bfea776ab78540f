"""Engines run the graphs of a bundle: the contract, the checks of a graph's signature, and the choice.

May import ``bundle`` and ``errors``.
"""
