"""The networks whose features the metrics compare, and the places of their weights."""
