"""F2: what an image dataset is: its arrays, its Parquet shards and the manifest that vouches for them."""

from cmray.datasets.base import DatasetConfig, ImageDataset, datasets

__all__ = ["DatasetConfig", "ImageDataset", "datasets"]
