"""Every test of the kernels runs on the imitated machine, and on a GPU where there is one."""

import pytest

from flashmoe.errors import DeviceError
from flashmoe.kernels.cuda.gpu import Gpu
from tests.kernels.cuda.emulated import EmulatedDevice


@pytest.fixture(scope="session")
def the_gpu():
    try:
        return Gpu()
    except DeviceError as error:
        pytest.skip(f"NOT RUN ON A GPU: {error}")


@pytest.fixture(params=["emulated", "gpu"])
def device(request):
    """Arrays of a GPU are read with ``download``."""
    if request.param == "gpu":
        return request.getfixturevalue("the_gpu")
    return EmulatedDevice()
