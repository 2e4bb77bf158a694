"""What lies on disk: columns, parts with their records, manifests, pairs."""
