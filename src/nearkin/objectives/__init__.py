"""Objectives: a loss with a home. State, several terms, turns of its own; one paper, one file."""
