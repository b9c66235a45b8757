"""Which algorithm can learn from which data? The figures of BEAR and BCQ on a small task."""
