"""Support or distribution? The lecture's tabular pictures of BEAR and BCQ."""
