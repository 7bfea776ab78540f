"""The runtime: takes a scanner's volumes, decodes at every TR, shows and records the result."""
