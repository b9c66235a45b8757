"""Studies: one question each, answered with the scripts of algorithms/."""
