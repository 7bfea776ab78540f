"""The demo world: scenes, a simulated cortex that writes synthetic subjects, the scanner that replays runs."""
