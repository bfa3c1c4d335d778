"""Results, exports and pictures: what is written and read."""
