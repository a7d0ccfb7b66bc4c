"""Where goals come from, beyond what was recorded. Nothing in this version."""
