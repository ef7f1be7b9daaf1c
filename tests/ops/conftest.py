import pytest

from ftrt.ops.extension import EXTENSION

ISAS = EXTENSION.module.usable_isas() if EXTENSION.module else []


@pytest.fixture(params=ISAS or ["reference"])
def isa(request):
    """Runs the test once at each instruction set this build and CPU have."""
    if EXTENSION.module is None:
        yield request.param
        return
    before = EXTENSION.module.chosen_isa()
    EXTENSION.module.set_isa(request.param)
    yield request.param
    EXTENSION.module.set_isa(before)
