"""The offline half: recipes, prepared recordings, the model, training with DeepSpeed, evaluation."""
