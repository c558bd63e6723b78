"""Losses: pure functions of one Comparison. They hold no state and know nothing of encoders."""
