"""F3: where results are kept: records in the storage folder (the source of truth) and trackers that mirror them."""
