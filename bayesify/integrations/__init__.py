"""Callbacks for trainers of other libraries: each module imports its library, and is imported only when used."""
