"""The demo world: scenes, a simulated cortex that writes synthetic subjects, a scanner that replays runs."""
