"""Where faces and verification protocols come from: data sets as people have them, and synthetic faces."""
