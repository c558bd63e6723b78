"""Nearest neighbors: exact, by screened blocks."""
