"""Carries a plan out, and takes it back."""
