import sys
from pathlib import Path

import pytest

# importlib mode leaves sys.path alone; the shared models and methods stand beside the tests
sys.path.insert(0, str(Path(__file__).parent))


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
