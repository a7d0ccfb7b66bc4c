"""Offline pretraining, practice, evaluation, and the run folders they leave."""
