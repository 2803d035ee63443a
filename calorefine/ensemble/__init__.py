"""Replicas of a generator, trained on bootstrap copies of its data, and what becomes of them."""
