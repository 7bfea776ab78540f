"""The run folder: its journal, frames and tables, written and read."""
