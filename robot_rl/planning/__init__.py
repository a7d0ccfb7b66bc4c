"""How far goals are split into subgoals. Nothing in this version."""
