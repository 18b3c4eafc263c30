"""D4RL's tasks and datasets on Gymnasium: a small, maintained stand-in for the retired `d4rl` package.

The original (Fu et al. 2020, arXiv 2004.07219) needs mujoco-py and cannot be installed on today's Python. This one
keeps its names, its task ids, the arrays it returns and its reference scores:

    import d4rl, gymnasium

    env = gymnasium.make("hopper-medium-v2")                               # registered by `import d4rl`
    data = d4rl.qlearning_dataset("hopper-medium-v2")                      # transitions as numpy arrays
    score = 100 * d4rl.get_normalized_score("hopper-medium-v2", returns)   # 0 = random, 100 = expert

`data.py` reads and checks datasets, `environments.py` holds the environments that differ from Gymnasium's and
Gymnasium-Robotics' own, `tasks.tsv` lists every task.
"""

import warnings

import gymnasium

from d4rl.data import (
    TASKS,
    DatasetError,
    Task,
    describe,
    episode_returns,
    get_dataset,
    get_normalized_score,
    qlearning_dataset,
    task,
)
from d4rl.evaluation import evaluate

__all__ = [
    "DatasetError",
    "Task",
    "describe",
    "episode_returns",
    "evaluate",
    "get_dataset",
    "get_normalized_score",
    "qlearning_dataset",
    "task",
]

# By the first word of the id. As strings they are imported by `gymnasium.make`, so reading a dataset loads no MuJoCo.
ENTRY_POINTS = {
    "hopper": "gymnasium.envs.mujoco.hopper_v4:HopperEnv",
    "halfcheetah": "gymnasium.envs.mujoco.half_cheetah_v4:HalfCheetahEnv",
    "walker2d": "gymnasium.envs.mujoco.walker2d_v4:Walker2dEnv",
    "pen": "d4rl.environments:PenEnv",
    "door": "d4rl.environments:DoorEnv",
    "hammer": "d4rl.environments:HammerEnv",
    "relocate": "d4rl.environments:RelocateEnv",
    "maze2d": "d4rl.environments:Maze2dLargeEnv",
}
KWARGS = {"maze2d-large-demos-v0": {"start_cell": (1, 1)}}

for env_id, spec in TASKS.items():
    gymnasium.register(
        env_id,
        entry_point=ENTRY_POINTS[env_id.split("-")[0]],
        kwargs=KWARGS.get(env_id, {}),
        max_episode_steps=spec.max_episode_steps,
        disable_env_checker=True,
    )
del env_id, spec

# In D4RL, v0 and v1 name two dataset files of one environment; Gymnasium would call every v0 out of date.
warnings.filterwarnings("ignore", r".*The environment (pen|door|hammer|relocate)-\w+-v0 is out of date")
