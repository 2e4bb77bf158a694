"""FIQA methods on a recogniser or network: one file each, and one for those that need a single forward pass."""
