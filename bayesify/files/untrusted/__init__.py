"""Bytes that nobody vouches for: read as data, and never run."""
