"""One component of each kind for cmray, each in its own file."""
