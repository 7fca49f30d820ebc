"""Planning and learning where every state has its own entry in a table; NumPy and plain lists, no torch."""
