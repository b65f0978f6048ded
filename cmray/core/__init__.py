"""F0: the mathematics that needs only torch and numpy, and the small contracts every floor shares."""
