"""F3: typed experiment files: load, extend, override, validate, expand into trials, name by content."""
