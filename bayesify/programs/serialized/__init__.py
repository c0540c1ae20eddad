"""The text of an exported program, checked before torch parses it."""
