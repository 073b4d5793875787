"""The stand-in raises where the Ascend apex raises; AOCR_APEX=FOLDER runs the same on the real one."""

import pytest

PRELUDE = """
import collections, dataclasses, torch
from torch import nn
from apex import amp
OPTIONS = dict(opt_level="O2", loss_scale="dynamic", combine_grad=True, verbosity=0)
class Network(nn.Module):
    def __init__(self, out=lambda x: x):
        super().__init__()
        self.linear, self.norm, self.out = nn.Linear(4, 4), nn.BatchNorm1d(4), out
        self.bare = nn.BatchNorm1d(4, affine=False)
    def forward(self, x):
        return self.out(self.norm(self.linear(x)))
def make(out=lambda x: x, device="npu:0"):
    model = Network(out).to(device)
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
x = torch.randn(3, 4, device="npu:0")
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(simulated_npu, tmp_path_factory):
    """Runs lines after PRELUDE, returns what they print, and the error if there is one."""
    npu, folder = simulated_npu(), tmp_path_factory.mktemp("contract")

    def run(code: str) -> str:
        (folder / "program.py").write_text(PRELUDE + code)
        result = npu.run(folder / "program.py")
        return result.stdout + (result.stderr if result.returncode else "")

    return run


def test_what_is_cast(run):
    out = run("""
number = torch.ones(1, dtype=torch.int64, device="npu:0")
model, optimizer = amp.initialize(*make(lambda y: {"y": y, "n": number}), **OPTIONS)
state = model.state_dict()
print(model.linear.weight.dtype, model.norm.weight.dtype, model.bare.running_mean.dtype, state["linear.weight"].dtype)
print(*(value.dtype for value in model(x).values()))
optimizer.zero_grad()
print(*(master.dtype for master in amp.master_params(optimizer)))
""")
    assert out.split("\n")[0] == "torch.float16 torch.float32 torch.float16 torch.float32"
    assert out.split("\n")[1] == "torch.float32 torch.int64"
    assert out.split("\n")[2] == "torch.float32 " * 3 + "torch.float32"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("amp.initialize(*make(device='cpu'), **OPTIONS)", "RuntimeError"),
        ("m, o = make(); amp.initialize(m.half(), o, **OPTIONS)", "RuntimeError"),
        ("m, o = make(); amp.initialize(m, o, **OPTIONS); amp.initialize(Network().to('npu:0'), o, **OPTIONS)", "once"),
        ("m, o = amp.initialize(*make(), **OPTIONS); o.zero_grad(set_to_none=True)", "TypeError"),
        (
            "T = collections.namedtuple('T', 'a b'); m, o = amp.initialize(*make(lambda y: T(y, y)), **OPTIONS); m(x)",
            "TypeError",
        ),
        (
            "import torch.distributed as dist; store = dist.HashStore()\n"
            "dist.init_process_group('hccl', store=store, rank=0, world_size=1)\n"
            "m, o = make(); amp.initialize(nn.parallel.DistributedDataParallel(m), o, **OPTIONS)",
            "RuntimeError",
        ),
    ],
    ids=["host", "half", "twice", "set_to_none", "namedtuple", "ddp"],
)
def test_what_raises(run, code, error):
    out = run(code + "\nprint('nothing raised')")
    assert error in out
    assert "Traceback" in out


def test_a_dataclass_is_not_cast(run):
    out = run("""
@dataclasses.dataclass
class Out:
    y: torch.Tensor
model, _ = amp.initialize(*make(lambda y: Out(y)), **OPTIONS)
print(model(x).y.dtype)
""")
    assert out.splitlines()[-1] == "torch.float16"


def test_an_overflow_skips_one_step_and_the_momentum_is_rounded(run):
    """What ApexO2.prepare must make good: masters and momentum go through float16."""
    out = run("""
model, optimizer = make()
model(x).square().sum().backward(); optimizer.step()
weight, momentum = model.linear.weight.detach().clone(), optimizer.state[model.linear.weight]["momentum_buffer"].clone()
amp.initialize(model, optimizer, dynamic_init_scale=2.0**8, **OPTIONS)
optimizer.zero_grad()
master = next(amp.master_params(optimizer))
print(torch.equal(master, weight), torch.equal(master, weight.half().float()))
print(torch.equal(optimizer.state[master]["momentum_buffer"], momentum))
for factor in (1e30, 1.0):
    before = model.linear.weight.clone()
    optimizer.zero_grad()
    with amp.scale_loss(model(x).square().sum() * factor, optimizer) as scaled:
        scaled.backward()
    optimizer.step()
    print(torch.equal(model.linear.weight, before))
""")
    assert out.split() == ["False", "True", "False", "True", "False"]
