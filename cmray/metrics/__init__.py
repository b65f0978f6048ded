"""F2: feature extractors, mergeable statistics, the Fréchet distance and distances in feature space."""
