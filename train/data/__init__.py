"""Prepared recordings: caches, windows, trials and priors."""
