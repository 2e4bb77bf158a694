"""Architectures of recognisers, as their released checkpoints have them."""
