"""docs/library.md runs as it stands, and what it says of shapes and files holds."""

import re

import pytest
import torch
from helpers import ROOT


@pytest.mark.slow
def test_the_page_runs(folder):
    page = (ROOT / "docs" / "library.md").read_text("utf-8")
    names = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, names)
    B, N, out = *names["ids"].shape, names["out"]
    assert [x.shape for x in out.hidden] == [(B, N, 384)] * 7
    assert [x.shape for x in out.queries] == [(B, N, 384)] * 6
    assert torch.allclose(names["maps"].sum(-1), torch.ones(B, 12, N))
    assert len(names["losses"]) == 7
    assert all(total > 0 and count > 0 for total, count in names["losses"].values())
    assert torch.equal(names["student"](names["ids"], names["mask"])[0][-1], names["own"][0][-1])
