"""Where faces, pair lists and scores come from. `kinds.py` has the tables; one file per kind reads it."""
