"""Experts: where their weights lie, and who computes them."""
