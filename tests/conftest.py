import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # the scripts are not a package
torch.set_num_threads(1)
