"""The known traps of rewriting models, one test each: what would turn noise off, or count it wrong, silently."""
