"""The command line ``robot-rl``."""
