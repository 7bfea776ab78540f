"""The networks whose features the metrics compare, and where their weights lie."""
