"""Nearest neighbors: exact, by screened blocks."""

from nearkin.search.index import Index

__all__ = ["Index"]
