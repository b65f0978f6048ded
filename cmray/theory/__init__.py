"""F3: the theorems of the Consistency Models paper, measured on data whose score is known."""
