"""The YAML language that says which layers convert, and how."""
