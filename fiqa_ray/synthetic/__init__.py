"""Synthetic faces with known quality: geometry, rendering, damage, data sets, and a small recogniser for them."""
