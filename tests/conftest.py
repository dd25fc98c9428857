import os
from pathlib import Path

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # processes that tests start

hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of data sets that are not part of the repository; the test is skipped where there is none.

    It is named by the environment variable GEOATTN_DATA, or is ``shared/data`` beside the checkout.
    """
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("GEOATTN_DATA", beside))
    if not folder.is_dir():
        pytest.skip("no GEOATTN_DATA")
    return folder
