import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import align


@pytest.mark.parametrize("name", sorted(align._MODULE_OF))
def test_every_public_name_is_the_one_of_its_module(name):
    module = importlib.import_module(f"align.{align._MODULE_OF[name]}")
    assert getattr(align, name) is getattr(module, name)
    assert name in dir(align)


def test_a_type_checker_sees_the_names_that_there_are():
    lines = Path(align.__file__).read_text().splitlines()
    imported = {line.split()[-1] for line in lines if line.startswith("    from align.")}
    assert imported == set(align._MODULE_OF)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'align' has no attribute 'no_such_loss'"):
        align.no_such_loss  # noqa: B018


def test_importing_the_package_loads_no_torch_and_importing_a_loss_no_transformers():
    script = """
import sys
import align
assert "torch" not in sys.modules
from align import dpo_loss, grpo_loss, per_token
loaded = {"transformers", "accelerate", "datasets", "peft", "gymnasium"} & set(sys.modules)
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", script], check=True)
