import sys
from pathlib import Path

import pytest
import torch

# importlib mode leaves sys.path alone; the shared models and methods stand beside the tests
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Layers of 16 features gain nothing from threads, and lose much where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def installed_shift(monkeypatch):
    """The method "shift" of these tests, as if a plugin offered it."""
    from peft_subjects import Shift

    from ftrt.plugins import Manifest, Offer, PluginManager
    from ftrt.registry import Registry

    def method(self, section):
        assert section.name == "shift"
        return Shift(Shift.Config.model_validate(section.options))

    monkeypatch.setattr(Registry, "method", method)
    manifest = Manifest((Offer("method", "shift", "peft_subjects", "ftrt-shift", "1.0"),))
    original = PluginManager.__init__
    monkeypatch.setattr(
        PluginManager, "__init__", lambda self, given=None: original(self, given or manifest)
    )
