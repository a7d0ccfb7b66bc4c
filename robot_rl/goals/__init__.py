"""Not in this version."""
