"""Measures that compare a sample of images with a reference: one file each, found by `base.measures`."""
