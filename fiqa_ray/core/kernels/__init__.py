"""Compiled loops and devices, each under its numpy equivalent."""
