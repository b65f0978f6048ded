"""One way of measuring images, in a process of its own: it loads, says so, measures when told to, says what it found.

    python analysis/benchmarks/evaluate_peers.py PEER FOLDER THREADS

It is started by evaluate.py, which makes FOLDER. A way gets a function for a few images to warm up on and one for all;
both return (the distance, mean features float64 [2048]).
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

#: of images, statistics and weights in FOLDER
IMAGES, WARM, FILES, REFERENCE = "images.npz", "warm.npz", "files", "reference.npz"
SCRIPTED, PLAIN = "inception-2015-12-05.pt", "plain.pth"
#: images that wake a process up
WARM_COUNT = 16
CPU = torch.device("cpu")

Found = tuple[float, np.ndarray]


@contextmanager
def cmray(folder: Path, threads: int) -> Iterator[Callable[[str], Found]]:
    """What `cmray evaluate --images FILE.npz --parallel THREADS` does: on threads of this process."""
    from cmray.cli.measuring import working
    from cmray.config.metric import parse_metrics
    from cmray.core.protocol import REFERENCE_BLOCK
    from cmray.engine.evaluator import image_chunks
    from cmray.engine.images import find_images
    from cmray.engine.measure import Wanted
    from cmray.engine.references import Against, references_for
    from cmray.engine.results import evaluate_images
    from cmray.engine.sides import described, extractor_facts
    from cmray.metrics.reference import read_published

    (metric,) = parse_metrics([f"{{name: fd/inception-clean, extractor: {{weights: {folder / SCRIPTED}}}}}"])
    extractor = metric.extractor.model_dump(mode="json")
    storage = folder / f"storage-{time.time_ns()}"
    shape = find_images(str(folder / IMAGES), storage, "images").shape
    references = references_for([metric], Against(published=read_published(folder / REFERENCE)), shape, storage)

    with working(threads, None) as pool:
        warm = image_chunks(find_images(str(folder / WARM), storage, "images"), [Wanted("w", extractor)], WARM_COUNT)
        pool.run([("describe", tuple(warm))] * pool.size)

        def measure(which: str) -> Found:
            images = find_images(str(folder / which), storage, "images")
            if images.count <= REFERENCE_BLOCK and which == WARM:
                return 0.0, np.zeros(0)
            (found,) = evaluate_images(images, [metric], references, storage, pool)
            sample = described(images, extractor, extractor_facts(extractor, shape), storage, pool)  # read, not made
            return found.value, sample.statistics.mean

        yield measure


def _clean_fid(workers: int) -> Callable[[Path, int], Any]:
    @contextmanager
    def way(folder: Path, threads: int) -> Iterator[Callable[[str], Found]]:
        from cleanfid.fid import frechet_distance, get_folder_features
        from cleanfid.inception_torchscript import InceptionV3W

        torch.set_num_threads(threads)
        model = InceptionV3W(str(folder), download=False).eval()
        with np.load(folder / REFERENCE) as given:
            mu, sigma = given["mu"], given["sigma"]

        def measure(which: str) -> Found:
            place = folder / FILES / Path(which).stem
            features = get_folder_features(
                str(place), model=model, num_workers=workers, device=CPU, mode="clean", verbose=False
            )
            if which == WARM:
                return 0.0, np.zeros(0)
            mean, covariance = features.mean(axis=0), np.cov(features, rowvar=False)
            return float(frechet_distance(mean, covariance, mu, sigma)), features.astype(np.float64).mean(axis=0)

        yield measure

    return way


@contextmanager
def torch_fidelity(folder: Path, threads: int) -> Iterator[Callable[[str], Found]]:
    from torch_fidelity.feature_extractor_inceptionv3 import (  # pyright: ignore[reportMissingImports]
        FeatureExtractorInceptionV3,
    )
    from torch_fidelity.metric_fid import (  # pyright: ignore[reportMissingImports]
        fid_featuresdict_to_statistics,
        fid_statistics_to_metric,
    )
    from torch_fidelity.utils import get_featuresdict_from_dataset  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(threads)
    network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(folder / PLAIN))
    with np.load(folder / REFERENCE) as given:
        reference = {"mu": given["mu"], "sigma": given["sigma"]}

    def measure(which: str) -> Found:
        with np.load(folder / which) as given:
            images = _Rows(torch.from_numpy(given["arr_0"]).permute(0, 3, 1, 2).contiguous())
        features = get_featuresdict_from_dataset(images, network, 64, False, True, False)  # its usual batch
        if which == WARM:
            return 0.0, np.zeros(0)
        found = fid_featuresdict_to_statistics(features, "2048")
        found["mu"] = found["mu"].astype(reference["mu"].dtype)
        (value,) = fid_statistics_to_metric(found, reference, verbose=False).values()
        return float(value), features["2048"].double().mean(0).numpy()

    yield measure


class _Rows(torch.utils.data.Dataset):
    def __init__(self, images: torch.Tensor):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.images[i]


#: by the names of evaluate.py's rows
WAYS: dict[str, Callable[[Path, int], Any]] = {
    "clean-fid": _clean_fid(0),
    "clean-fid, a loader process": _clean_fid(1),
    "torch-fidelity": torch_fidelity,
    "cmray": cmray,
}


def main() -> None:
    warnings.filterwarnings("ignore")
    name, folder, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    began = time.perf_counter()
    with torch.no_grad(), WAYS[name](folder, threads) as measure:
        measure(WARM)
        print(json.dumps({"ready": time.perf_counter() - began}), flush=True)
        sys.stdin.readline()
        began = time.perf_counter()
        value, mean = measure(IMAGES)
        seconds = time.perf_counter() - began
        print(json.dumps({"seconds": seconds, "value": value, "mean": mean.tolist()}), flush=True)


if __name__ == "__main__":
    main()
