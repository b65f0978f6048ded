"""The one-step sampler as an ONNX graph."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from cmray.core.errors import CheckpointError
from cmray.core.precond import Denoiser
from cmray.exchange.base import Exported, Target, targets
from cmray.exchange.card import model_card

FILE = "model.onnx"
#: the first that has scaled dot products and group norms of every kind we use
OPSET = 20
#: parameters that fit into the file itself, which cannot hold 2 GiB; those of larger networks lie beside it
ALONE = 400_000_000
#: images of the example that the graph is traced with; any number goes in later
EXAMPLE = 2


class OneStepGraph(nn.Module):
    """noise z [B,C,H,W] ~ N(0, 1), labels int64 [B] where there are classes -> f(sigma_max z, sigma_max) [B,C,H,W]."""

    def __init__(self, exported: Exported):
        super().__init__()
        run = exported.run
        self.net = exported.model.net
        self.precond = run.precond()
        self.sigma_max = run.noise.sigma_max

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        sigma = noise.new_full((noise.shape[0],), self.sigma_max)
        return Denoiser(self.net, self.precond)(self.sigma_max * noise, sigma, labels)


@targets.register("onnx")
class Onnx(Target):
    """model.onnx with input `noise` (and `labels`), output `image` in about [-1, 1], any batch size; a model card."""

    def check(self, exported: Exported) -> None:
        missing = [name for name in ("onnx", "onnxscript") if not _is_here(name)]
        if missing:
            raise CheckpointError(f"an ONNX graph needs {' and '.join(missing)}: pip install 'cmray[export]'")
        kind, own = exported.run.objective.kind, exported.run.objective.own_nfe
        if kind == "denoiser":
            raise CheckpointError(
                f"{exported.name} is a denoiser, whose one step is no sample; the graph is of one step of a "
                f"consistency model"
            )
        if own not in (None, 1):
            raise CheckpointError(f"{exported.name} was distilled to {own} steps; the graph is of one step")

    def write(self, exported: Exported, folder: Path) -> str:
        graph = OneStepGraph(exported).eval().cpu()
        classes, shape = exported.model.num_classes, exported.model.shape
        arguments: tuple[Tensor, ...] = (torch.zeros(EXAMPLE, *shape),)
        if classes:
            arguments = (*arguments, torch.zeros(EXAMPLE, dtype=torch.int64))
        batch = torch.export.Dim("batch", min=1)
        dynamic = tuple({0: batch} for _ in arguments)
        large = sum(p.numel() for p in graph.parameters()) > ALONE
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _quiet():
            torch.onnx.export(
                graph, arguments, folder / FILE, input_names=["noise", "labels"][: len(arguments)],
                output_names=["image"], opset_version=OPSET, dynamo=True, dynamic_shapes=dynamic, external_data=large,
                verbose=False,
            )  # fmt: skip
        c, h, w = shape
        labels = ', "labels": np.zeros(4, np.int64)' if classes else ""
        use = (
            "import numpy as np\nimport onnxruntime\n\n"
            f'session = onnxruntime.InferenceSession("FOLDER/{FILE}")\n'
            f"noise = np.random.default_rng(0).standard_normal((4, {c}, {h}, {w}), np.float32)\n"
            f'(image,) = session.run(None, {{"noise": noise{labels}}})  # about [-1, 1]'
        )
        (folder / "README.md").write_text(model_card(exported, use, library="onnx"))
        return f"python -c 'import onnxruntime as o; print(*o.InferenceSession(\"{{out}}/{FILE}\").get_inputs())'"


def _is_here(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # somebody has put nothing in its place
        return False


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's advice about itself is nobody's business here."""
    logger = logging.getLogger("torch.onnx")
    before, scripts = logger.level, logging.getLogger("onnxscript")
    was = scripts.level
    logger.setLevel(logging.ERROR)
    scripts.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(before)
        scripts.setLevel(was)
