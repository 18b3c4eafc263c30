"""Where continuous CQL loses value: Q of the data's actions minus Q of its policy's, transition by transition.

    python benchmark/cql_gap.py runs/NAME              # a finished run of baselines/cql.py

Every target takes Q of the policy's next action, so a positive gap is subtracted anew at every step. What it says about
the lift stand-in: docs/baselines.md.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
import d4rl  # noqa: E402

spec = importlib.util.spec_from_file_location("continuous_cql", ROOT / "baselines" / "cql.py")
cql = sys.modules["continuous_cql"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cql)


@torch.no_grad()
def gaps(learner: nn.ModuleDict, obs: Tensor, action: Tensor, draws: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """Q(s,a_data) - E_{a ~ pi}[Q(s,a)] (B,), the same if pi took one dimension of the data's action (B, action_dim),
    and Q(s,a_data) (B,); means over critics.
    """
    torch.manual_seed(0)
    drawn = cql.draw(learner["policy"](obs), draws).tanh()  # (B, draws, action_dim)

    def value(actions: Tensor) -> Tensor:
        return cql.values(learner["q"], obs, actions).mean((0, 2))  # (B,)

    data_q, mended = value(action[:, None]), []
    for dimension in range(action.shape[1]):
        actions = drawn.clone()
        actions[..., dimension] = action[:, None, dimension]
        mended.append(data_q - value(actions))
    return data_q - value(drawn), torch.stack(mended, 1), data_q


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of a finished run of baselines/cql.py")
    parser.add_argument("--share", type=float, default=0.03, help="the transitions with the largest gaps, above 0 to 1")
    options = parser.parse_args(argv)
    if not 0 < options.share <= 1:
        cql.stop(f"--share is {options.share}; it has to be above 0 and at most 1.")
    args = cql.parse_args(["--evaluate", options.run])
    checkpoint = cql.read_checkpoint(options.run, "learner")
    data = cql.load_data(args)
    obs, action = data["observations"].cpu(), data["actions"].cpu()
    learner = cql.make_learner(args, obs.shape[1], action.shape[1])
    learner.load_state_dict(checkpoint["stages"]["learner"]["model"])

    parts = [gaps(learner, *rows) for rows in zip(obs.split(1000), action.split(1000), strict=True)]
    gap, mended, data_q = (torch.cat(part) for part in zip(*parts, strict=True))
    worst = gap >= gap.quantile(1 - options.share)
    with torch.no_grad():
        distance = (action - cql.policy(args, learner, obs)).abs()
    quantiles = ", ".join(f"{x:.1f}" for x in np.quantile(gap.numpy(), [0.05, 0.5, 0.95]))
    print(f"{len(gap):,} transitions, mean Q {data_q.mean():.1f}")
    print(f"gap {gap.mean():.1f} on average; 5 %, 50 % and 95 % quantile {quantiles}")
    print(f"{worst.sum():,} largest gaps {gap[worst].mean():.1f} on average, the others {gap[~worst].mean():.1f}")
    print("action  |data - policy|, largest gaps  the others  gap of the largest with the data's action there")
    for i in range(action.shape[1]):
        numbers = distance[worst, i].mean(), distance[~worst, i].mean(), mended[worst, i].mean()
        print("{:6}  {:30.3f}  {:10.3f}  {:49.1f}".format(i, *numbers))


if __name__ == "__main__":
    try:
        main()
    except d4rl.DatasetError as error:
        cql.stop(str(error))
