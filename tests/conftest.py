import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # the scripts are not a package
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """`finished(script)`: the folder of a tiny run, made when first asked for, and the flags of its data."""
    from common import HOPPER, dataset, run

    made = {}

    def get(script):
        if script not in made:
            folder = tmp_path_factory.mktemp(script.replace("/", "_"))
            flags = ["--env-id", HOPPER, "--dataset-path", str(dataset(folder / "data.hdf5"))]
            made[script] = run(script, folder, *flags), flags
        return made[script]

    return get
