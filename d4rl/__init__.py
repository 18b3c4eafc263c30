"""D4RL's tasks and datasets on Gymnasium: a small, maintained stand-in for the retired `d4rl` package.

The original (Fu et al. 2020, arXiv 2004.07219) needs mujoco-py and cannot be installed on today's Python. This one
keeps its names, its task ids, the arrays it returns and its reference scores:

    import d4rl, gymnasium

    env = gymnasium.make("hopper-medium-v2")                               # registered by `import d4rl`
    data = d4rl.qlearning_dataset("hopper-medium-v2")                      # transitions as numpy arrays
    score = 100 * d4rl.get_normalized_score("hopper-medium-v2", returns)   # 0 = random, 100 = expert

`tasks.py` and `tasks.tsv` list the tasks, `downloads.py` gets datasets, `data.py` reads and checks them and
`evaluation.py` plays episodes. `environments.py` (Adroit, maze2d), `antmaze.py` and `kitchen.py` hold the environments
that differ from Gymnasium's and Gymnasium-Robotics' own. `robomimic_tasks.py` and `minari_datasets.py` bring
robomimic's and Minari's tasks through the same functions. `runs.py` (imported by name) is for the training scripts:
command line, run folders, checkpoints; `seeds.py` starts a run for each of several seeds.
"""

import re
import warnings

import gymnasium

from d4rl.data import (
    Spaces,
    action_bounds,
    describe,
    episode_returns,
    fingerprint,
    get_dataset,
    get_normalized_score,
    qlearning_dataset,
    return_range,
    warnings_about,
)
from d4rl.evaluation import evaluate, make, playable_task
from d4rl.tasks import TASKS, DatasetError, Task, UsageError, task

__version__ = "1.4.0"
__all__ = [
    "DatasetError",
    "Spaces",
    "Task",
    "UsageError",
    "action_bounds",
    "describe",
    "episode_returns",
    "evaluate",
    "fingerprint",
    "get_dataset",
    "get_normalized_score",
    "make",
    "playable_task",
    "qlearning_dataset",
    "return_range",
    "task",
    "warnings_about",
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
    "maze2d": "d4rl.environments:Maze2dEnv",
    "antmaze": "d4rl.antmaze:AntMazeEnv",
    "kitchen": "d4rl.kitchen:KitchenEnv",
    "robomimic": "d4rl.robomimic_tasks:RobomimicEnv",
}
# By how the id begins; the longest beginning counts.
KWARGS = {
    "maze2d-umaze": {"maze": "umaze"},
    "maze2d-medium": {"maze": "medium"},
    "maze2d-large": {"maze": "large"},
    "maze2d-large-demos": {"maze": "large", "start_cell": (1, 1)},
    "antmaze-umaze": {"maze": "umaze"},
    "antmaze-medium": {"maze": "medium"},
    "antmaze-large": {"maze": "large"},
    "kitchen-complete": {"tasks": ("microwave", "kettle", "light switch", "slide cabinet")},
    "kitchen-partial": {"tasks": ("microwave", "kettle", "light switch", "slide cabinet")},
    "kitchen-mixed": {"tasks": ("microwave", "kettle", "bottom burner", "light switch")},
}

for env_id, spec in TASKS.items():
    prefix = max((name for name in KWARGS if env_id.startswith(name)), key=len, default=None)
    gymnasium.register(
        env_id,
        entry_point=ENTRY_POINTS[re.split("[-/]", env_id)[0]],
        kwargs={"env_id": env_id} if spec.is_robomimic else KWARGS.get(prefix, {}),
        max_episode_steps=spec.max_episode_steps,
        disable_env_checker=True,
    )
del env_id, spec, prefix

# In D4RL, v0 and v1 name two dataset files of one environment; Gymnasium would call every v0 out of date.
warnings.filterwarnings("ignore", r".*The environment (pen|door|hammer|relocate)-\w+-v0 is out of date")
