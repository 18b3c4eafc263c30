"""robomimic's tasks: its demonstration files, and robosuite's environments as each file describes them.

A file (`low_dim_v15.hdf5`) holds one group per demonstration in `data`, and in `data.attrs["env_args"]` the arguments
that build its environment. Robomimic itself (Mandlekar et al. 2021, arXiv 2108.03298) is not needed. Checked with
robosuite 1.5.2.
"""

import importlib.util
import json
import logging
from pathlib import Path

import gymnasium
import h5py
import numpy as np

from d4rl.tasks import DatasetError, Task, task

ENVIRONMENTS = {
    "lift": "Lift",
    "can": "PickPlaceCan",
    "square": "NutAssemblySquare",
    "tool_hang": "ToolHang",
    "transport": "TwoArmTransport",
}
ROBOT_KEYS = ("eef_pos", "eef_quat", "gripper_qpos")


def _name(spec: Task) -> str:
    return spec.env_id.removeprefix("robomimic/").rpartition("-")[0]  # robomimic/lift-ph: lift


def _observation_keys(spec: Task) -> list[str]:
    """Where an observation's entries come from, in order: each arm's end effector and gripper, then the objects."""
    arms = 2 if _name(spec) == "transport" else 1
    return [f"robot{arm}_{key}" for arm in range(arms) for key in ROBOT_KEYS] + ["object"]


# --- files ---
def read(spec: Task, path: Path) -> dict[str, np.ndarray]:
    """The demonstrations in the order of their numbers, one row per step, not yet checked.

    Returns:
        observations and next_observations (N, observation size); actions (N, action size); rewards (N,): 1 at success;
        terminals (N,): the same, because an episode ends at success (a demonstration may stay there for some rows);
        timeouts (N,): the last row of each demonstration.
    """
    with h5py.File(path) as file:
        version = _environment_args(spec, path, file)["env_version"]
        demonstrations = sorted(file["data"], key=lambda name: int(name.rpartition("_")[2]))
        arrays = {"observations": [], "actions": [], "next_observations": [], "rewards": [], "timeouts": []}
        for name in demonstrations:
            group = file["data"][name]
            for ours, theirs in (("observations", "obs"), ("next_observations", "next_obs")):
                missing = [key for key in _observation_keys(spec) if f"{theirs}/{key}" not in group]
                if missing:
                    raise DatasetError(
                        f"{path}: {name} lacks {theirs}/{missing[0]}; pass a low-dimensional file of robomimic's."
                    )
                arrays[ours].append(np.concatenate([group[theirs][key][()] for key in _observation_keys(spec)], axis=1))
            arrays["actions"].append(group["actions"][()])
            arrays["rewards"].append(group["rewards"][()])
            arrays["timeouts"].append(np.arange(len(group["rewards"])) == len(group["rewards"]) - 1)
    if not demonstrations:
        raise DatasetError(f"{path} holds no demonstrations; pass a file that has some.")
    arrays = {key: np.concatenate(parts) for key, parts in arrays.items()}
    for key in ("observations", "next_observations"):
        if version.startswith("1.4"):
            arrays[key] = _as_robosuite_1_5(spec, arrays[key])
    return arrays | {"terminals": arrays["rewards"] > 0}


def _as_robosuite_1_5(spec: Task, observations: np.ndarray) -> np.ndarray:
    """Bring observations of robosuite 1.4 into 1.5's order: (N, observation size) -> the same.

    1.4 gave each object's pose, then its pose seen from the gripper; 1.5 turns this round. Transport's two flags moved
    before the distances to the grippers. Lift's distance was gripper - cube, now it is cube - gripper.
    """
    name, observations = _name(spec), observations.copy()
    objects = observations[:, 18 if name == "transport" else 9 :]  # (a view)
    if name == "lift":
        objects[:, 7:] *= -1
    elif name == "transport":
        objects[:, 27:] = np.roll(objects[:, 27:], 2, axis=1)
    else:
        for start in range(0, objects.shape[1] // 14 * 14, 14):  # tool_hang: three objects, then two flags
            objects[:, start : start + 14] = np.roll(objects[:, start : start + 14], 7, axis=1)
    return observations


def _environment_args(spec: Task, path: Path, file: h5py.File) -> dict:
    """The file's env_name, env_version and env_kwargs, checked against the task."""
    try:
        args = json.loads(file["data"].attrs["env_args"])
        found, version = args["env_name"], args["env_version"]
    except (KeyError, TypeError, ValueError):
        raise DatasetError(f"{path} has no environment arguments; pass a file in robomimic's format.") from None
    if found != ENVIRONMENTS[_name(spec)]:
        raise DatasetError(
            f"{path} was recorded in {found}, {spec.env_id} needs {ENVIRONMENTS[_name(spec)]}; "
            "did you mean another --env-id?"
        )
    if not version.startswith(("1.4", "1.5")):
        raise DatasetError(f"{path} was recorded with robosuite {version}; 1.4 and 1.5 can be read.")
    return args


# --- environment ---
class RobomimicEnv(gymnasium.Env):
    """A robosuite task as robomimic evaluates it: reward 1 at success, which ends the episode.

    Args:
        env_id: e.g. "robomimic/lift-ph".
        dataset_path: the file that says how the environment is built (robot, controller); by default the task's own.

    Observation (float64): as in `read`; 19, 23, 23, 53, 59 numbers for lift, can, square, tool_hang, transport.
    Action: 7 numbers per arm in [-1, 1]: change of the end effector's position and rotation, gripper.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(self, env_id: str, dataset_path: str | Path | None = None, render_mode: str | None = None):
        from d4rl.data import dataset_file

        spec = task(env_id)
        self.task_name = _name(spec)
        path = dataset_file(spec, dataset_path)
        with h5py.File(path) as file:
            args = _environment_args(spec, path, file)
        kwargs = args["env_kwargs"] | {
            "has_renderer": False,
            "has_offscreen_renderer": render_mode is not None,
            "use_camera_obs": False,
            "use_object_obs": True,
            "reward_shaping": False,
            "ignore_done": True,  # gymnasium.make adds the time limit
            # Building the model anew costs 0.1 to 0.5 s. Only transport's and lift's hold anything random, the sizes of
            # their objects, and lift's cube is resized in place.
            "hard_reset": self.task_name == "transport",
        }
        if args["env_version"].startswith("1.4"):
            kwargs |= {"lite_physics": False, "controller_configs": _controllers(kwargs["controller_configs"])}
        self.render_mode = render_mode
        self.keys = [key.replace("object", "object-state") for key in _observation_keys(spec)]
        self.robosuite_env = _robosuite().make(args["env_name"], **kwargs)
        for robot in self.robosuite_env.robots:  # robosuite works out these constants 75 times a step, a tenth of it
            constant = {"action_limits": robot.action_limits}
            robot.__class__ = type(robot.__class__.__name__, (robot.__class__,), constant)
        low, high = self.robosuite_env.action_spec
        self.action_space = gymnasium.spaces.Box(low.astype(np.float32), high.astype(np.float32))
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (spec.observation_size,), np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        generator = np.random.default_rng(self.np_random.integers(2**63))
        self.robosuite_env.rng.bit_generator.state = generator.bit_generator.state  # robosuite shares this object
        if self.task_name == "lift":
            _resize_cube(self.robosuite_env)
        self.robosuite_env.reset()
        # The first observation has zeros for poses that are relative to the gripper, until asked once more.
        return self._observation(self.robosuite_env._get_observations(force_update=True)), {"success": False}

    def step(self, action):
        observation, _, _, _ = self.robosuite_env.step(action)
        success = bool(self.robosuite_env._check_success())
        return self._observation(observation), float(success), success, False, {"success": success}

    def _observation(self, entries: dict[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([entries[key] for key in self.keys])

    def render(self):
        return self.robosuite_env.sim.render(width=512, height=512, camera_name="frontview")[::-1]

    def close(self):
        self.robosuite_env.close()


def _resize_cube(lift):
    """Draw the size of Lift's cube (half edges of 20 to 22 mm) as a rebuilt model would, and put it into this one."""
    import mujoco

    model, data, cube = lift.sim.model._model, lift.sim.data._data, lift.cube
    cube.size = size = lift.rng.uniform(0.020, 0.022, 3)
    body = model.body(cube.root_body).id
    model.body_mass[body] = mass = 8 * 1000 * size.prod()  # kg
    model.body_inertia[body] = mass / 3 * ((size**2).sum() - size**2)
    geoms = model.body_geomadr[body] + np.arange(model.body_geomnum[body])
    model.geom_size[geoms] = model.geom_aabb[geoms, 3:] = size
    model.geom_rbound[geoms] = np.linalg.norm(size)
    model.bvh_aabb[model.body_bvhadr[body], 3:] = size
    mujoco.mj_setConst(model, data)  # all that follows from these


def check_robosuite():
    """DatasetError if robosuite is missing."""
    if importlib.util.find_spec("robosuite") is None:
        raise DatasetError("robomimic's tasks are played in robosuite, which is missing: pip install robosuite==1.5.2")


def _robosuite():
    """robosuite, imported only for these tasks: it takes seconds and warns of optional parts."""
    check_robosuite()
    logging.disable(logging.WARNING)
    try:
        import robosuite
    finally:
        logging.disable(logging.NOTSET)
    return robosuite


def _controllers(old):
    """robosuite 1.4's controller settings in the form that 1.5 takes; one per arm stays one per arm."""
    if isinstance(old, list):
        return [_controllers(one) for one in old]
    arm = old | {"input_ref_frame": "world", "gripper": {"type": "GRIP"}}
    return {"type": "BASIC", "body_parts": {"right": arm}}
