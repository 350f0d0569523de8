"A training step computes what the plain way does, fast, without waits; trading time for memory changes no number."

import json

import pytest
import torch
from conftest import PROJECT

from vat_nb.types import lengths_mask
from torch import nn

from vat_nb.transformer import TransformerEncoder
from vat_nb.video_encoder import VideoEncoder
from vat_nb.transformer import configure_blocks
from vat_nb.sizes import ModelConfig, build_vat
from vat_nb.model import Fusion
from vat_nb.momentum import make_teacher
from vat_nb.pretraining import Pretrain
from vat_nb.training.accelerator import make_accelerator


OPERATIONS = 1400  # of a step of the small setting, which has two layers in each part


@pytest.fixture(scope="module")
def benchmark():
    "What the cells of the benchmark define that are tagged `reference`."
    names = {}
    exec("from vat_nb.all import *\nimport copy, numpy as np, time\nfrom unittest import mock", names)
    for cell in json.loads((PROJECT / "nbs/benchmark.ipynb").read_text())["cells"]:
        if "reference" in cell["metadata"].get("tags", []):
            exec("".join(cell["source"]), names)
    return names


@pytest.fixture(scope="module")
def accelerator():
    return make_accelerator("cpu")


@pytest.mark.parametrize("dtype, most", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_a_step_is_the_plain_one(benchmark, accelerator, dtype, most):
    small = benchmark["SETTINGS"]["small"]
    assert max(benchmark["differences"](small, dtype, accelerator)) < most
    assert max(benchmark["differences"](small, dtype, accelerator, set(benchmark["CHANGES"]))) < most


def test_a_step_has_few_operations_and_does_not_wait(benchmark, accelerator):
    small = benchmark["SETTINGS"]["small"]
    objective, batch = benchmark["build"](**small), benchmark["random_clips"](**small)
    optimizer, plain = benchmark["make_optimizer"](objective), benchmark["plain_optimizer"](objective)
    steps = lambda n: benchmark["counted"](
        lambda: benchmark["our_steps"](objective, optimizer, [batch] * n, accelerator)
    )
    benchmark["literal_step"](objective, plain, batch, benchmark["CONFIG"], 1e-4)
    one, three, literal = (
        steps(1),
        steps(3),
        benchmark["counted"](lambda: benchmark["literal_step"](objective, plain, batch, benchmark["CONFIG"], 1e-4)),
    )
    ours = {k: (three[k] - one[k]) / 2 for k in one}
    assert ours["synchronisations"] <= 2, (
        "between two steps the host looks at the masks of a batch, "
        "and whether its gradient is finite, and at nothing else"
    )
    assert ours["operations"] < OPERATIONS and ours["operations"] < literal["operations"] / 2
    assert literal["synchronisations"] >= 2 * small["batch"]  # the count sees what waits


def test_dropped_patches_leave_the_sequence():
    torch.manual_seed(0)
    encoder = VideoEncoder(32, 10.0, dim=16, heads=2, layers=1).eval()
    video = torch.randint(0, 256, (3, 8, 3, 32, 32), dtype=torch.uint8)
    video_mask = lengths_mask(torch.tensor([8, 4, 0]), 8)

    def tokens(video, drop):
        torch.manual_seed(1)
        return encoder(video, video_mask, drop)

    whole, few = tokens(video, 0.0), tokens(video, 0.75)
    assert whole.hidden.shape[1] == 1 + 16 and few.hidden.shape[1] == 1 + 4
    assert few.mask.sum(1).tolist() == [1 + 4, 1 + 2, 1]  # the same share of each clip's own patches
    garbage = tokens(torch.where(video_mask[..., None, None, None], video, 99), 0.75)
    assert torch.equal(garbage.mask, few.mask) and torch.equal(garbage.hidden[few.mask], few.hidden[few.mask])
    draws = [encoder(video, video_mask, 0.75).cls[0] for _ in range(2)]
    assert not torch.equal(*draws)  # another draw each time


def test_recomputing_changes_no_gradient(benchmark):
    torch.manual_seed(0)
    objective = Pretrain(build_vat(ModelConfig("tiny", 32, 10.0, 6, 1)), queue_size=8)
    batch = benchmark["random_clips"](frames=4, side=32, seconds=1, batch=3)

    def gradients():
        torch.manual_seed(1)
        objective.single_step(batch, alpha=0.4).loss.backward()
        result = {k: p.grad for k, p in objective.named_parameters() if p.grad is not None}
        objective.zero_grad()
        return result

    plain = gradients()
    configure_blocks(objective, gradient_checkpointing=True)
    again = gradients()
    assert plain.keys() == again.keys() and all(torch.equal(v, again[k]) for k, v in plain.items())


def test_compiling_changes_neither_numbers_nor_names():
    torch.manual_seed(0)
    model = nn.ModuleList([TransformerEncoder(16, 2, 2), Fusion(16, 2, 2, 16)])
    x, mask = torch.randn(2, 6, 16), lengths_mask(torch.tensor([6, 4]), 6)

    def message(model):
        tokens = model[0](x, mask)
        return model[1](tokens, tokens).cls

    plain, names = message(model), list(model.state_dict())
    configure_blocks(model, gradient_checkpointing=True, backend="eager")
    for compiled in (model, make_teacher(model)):  # a copy is compiled, too
        torch.testing.assert_close(message(compiled), plain)
        assert list(compiled.state_dict()) == names and all(
            b._compiled_call_impl is not None for part in compiled for b in part.blocks
        )
    message(model).sum().backward()
    assert model[0].cls.grad.isfinite().all()
