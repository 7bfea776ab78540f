"""Offline half: windows, model, recipes, the DeepSpeed loop, evaluation."""
