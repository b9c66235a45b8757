"""What makes POR POR: stitching of states, and a guide that learns new tasks while pi stays."""
