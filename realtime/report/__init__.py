"""The report: what is written about a run once it is over."""
