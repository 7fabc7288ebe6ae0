"""The last section of docs/integrations.md: the network of a run in plain torch, as an exported program, as ONNX."""

from collections.abc import Callable

import pytest
import sections
import torch

from rst.experiments.build import build_model
from rst.experiments.spec import RunSpec
from rst.experiments.training import train

pytestmark = pytest.mark.integrations


def test_the_network_of_a_run_gives_its_logits_without_this_library(
    config: Callable[..., RunSpec], tmp_path, monkeypatch
):
    import onnxruntime

    monkeypatch.chdir(tmp_path)
    spec = config()
    checkpoint = train(spec, show_progress=False).checkpoint
    variables = {"torch": torch, "checkpoint": checkpoint}
    for block in sections.code("A trained network without rst"):
        exec(compile(block, "docs/integrations.md", "exec"), variables)

    network = build_model(spec, torch.device("cpu")).eval()
    network.load_state_dict(torch.load(checkpoint)["model"])
    torch.testing.assert_close(variables["logits"], network(variables["images"]))
    images = torch.randn(5, 1, 8, 8)  # another size of batch
    logits = network(images).detach()
    torch.testing.assert_close(torch.export.load("network.pt2").module()(images), logits)
    session = onnxruntime.InferenceSession("network.onnx")
    [by_onnx] = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(by_onnx), logits, rtol=1e-3, atol=1e-4)
