"""F3: tables, figures and sentences made from an experiment's records; reads the storage folder, runs nothing."""
