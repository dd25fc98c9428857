"""Attention on graphs."""
