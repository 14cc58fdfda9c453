"""Experts: the places of their weights, and the devices that compute them."""
