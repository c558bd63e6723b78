"""Methods: protocols with rounds and several players. One paper, one file."""
