"""FIQA methods that need more than a forward pass: one file each."""
