"""Networks: recognisers, FIQA methods, the quality regressor, and how checkpoints are read."""
