"""Metrics and pictures of generated against reference events."""
