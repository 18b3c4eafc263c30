"""robomimic's tasks: its demonstration files, and robosuite's environments as each file describes them.

A file (`low_dim_v15.hdf5`) holds one group per demonstration in `data`, and in `data.attrs["env_args"]` the arguments
that build its environment. Robomimic itself (Mandlekar et al. 2021, arXiv 2108.03298) is not needed. Checked with
robosuite 1.5.1 and 1.5.2.
"""

import importlib.util
import json
import logging
import re
from pathlib import Path
from unittest import mock

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
ROBOT_KEYS = {"eef_pos": 3, "eef_quat": 4, "gripper_qpos": 2}

INSTALL = 'pip install -e "./d4rl[robomimic]" in the clone.'
RELATIVE = "pass a file whose actions are changes of the pose, scaled to [-1, 1]"


def _name(spec: Task) -> str:
    return spec.env_id.removeprefix("robomimic/").rpartition("-")[0]  # robomimic/lift-ph: lift


def _observation_keys(spec: Task) -> dict[str, int]:
    """Where an observation's entries come from, in order, and how many: each arm and gripper, then the objects."""
    arms = 2 if _name(spec) == "transport" else 1
    sizes = {f"robot{arm}_{key}": size for arm in range(arms) for key, size in ROBOT_KEYS.items()}
    return sizes | {"object": spec.observation_size - sum(sizes.values())}


# --- files ---
def read(spec: Task, path: Path) -> dict[str, np.ndarray]:
    """The demonstrations in the order of their numbers, one row per step, not yet checked.

    Returns:
        observations and, if the file has them, next_observations (N, observation size); actions (N, action size);
        rewards (N,): 1 at success, see `_success`; terminals (N,): the same, because an episode ends at success (a
        demonstration may stay there for some rows); timeouts (N,): the last row of each demonstration.
    """
    with h5py.File(path) as file:
        old = _environment_args(spec, path, file)["env_version"].startswith("1.4")
        groups = _demonstrations(path, file)
        rewards, last, _ = _success(spec, path, groups)
        arrays = {"actions": _joined(spec, path, groups, {"actions": spec.action_size})}
        for name, prefix in (("observations", "obs"), ("next_observations", "next_obs")):
            if name == "observations" or _has(groups, prefix):
                keys = {f"{prefix}/{key}": size for key, size in _observation_keys(spec).items()}
                arrays[name] = _joined(spec, path, groups, keys)
                if old:
                    arrays[name] = _as_robosuite_1_5(spec, arrays[name])
    outside = (np.abs(arrays["actions"]) > 1.001).any(axis=1).mean()
    if outside > 0.5:
        problem = f"{100 * outside:.0f} % of the actions reach outside [-1, 1], as absolute poses do"
        raise DatasetError(f"{path}: {problem}; {RELATIVE}.")
    return arrays | {"rewards": rewards, "terminals": rewards > 0, "timeouts": last}


def remarks(spec: Task, path: Path) -> list[str]:
    """What a user has to know of how the rewards are read: a sentence, or none of robomimic's own files."""
    with h5py.File(path) as file:
        remark = _success(spec, path, _demonstrations(path, file))[2]
    return [remark] if remark else []


def _numbered(name: str) -> list:
    """By this, demo_2 comes before demo_10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _demonstrations(path: Path, file: h5py.File) -> list[h5py.Group]:
    """The groups in `data` that hold steps, in the order of the numbers in their names; others may stand beside."""
    names = sorted(file["data"], key=_numbered)
    groups = [file["data"][name] for name in names if isinstance(file["data"][name], h5py.Group)]
    groups = [group for group in groups if "actions" in group or "obs" in group]
    if not groups:
        raise DatasetError(f"{path} holds no demonstrations (groups with actions); pass a file that has some.")
    for group in groups:
        if "actions" not in group:
            raise DatasetError(f"{path}: {group.name} lacks actions; pass a low-dimensional file of robomimic's.")
    return groups


def _has(groups: list[h5py.Group], key: str) -> bool:
    return any(key in group for group in groups)


def _joined(spec: Task, path: Path, groups: list[h5py.Group], keys: dict[str, int]) -> np.ndarray:
    """Arrays side by side and one demonstration below the other: (N, sum of their sizes)."""
    demonstrations = []
    for group in groups:
        name, parts = group.name.rpartition("/")[2], []
        for key, size in keys.items():
            if not isinstance(group.get(key), h5py.Dataset):
                raise DatasetError(f"{path}: {name} lacks {key}; pass a low-dimensional file of robomimic's.")
            values, wanted = group[key][()], (len(group["actions"]), size)
            if wanted == (*values.shape, 1):
                values = values[:, None]
            if values.shape != wanted or values.dtype.kind not in "biuf":
                found = f"holds {values.dtype} of shape {values.shape}"
                raise DatasetError(f"{path}: {name}/{key} {found}; {spec.env_id} needs numbers of shape {wanted}.")
            parts.append(values)
        demonstrations.append(np.concatenate(parts, axis=1))
    return np.concatenate(demonstrations)


def _success(spec: Task, path: Path, groups: list[h5py.Group]) -> tuple[np.ndarray, np.ndarray, str]:
    """Rewards as the environment pays them, the last rows of the demonstrations, and how other rewards were read.

    The environment pays 1 at success and nothing else, and that is what policies are scored by. robomimic's files say
    the same, or have dense rewards beside `dones` at success. Files of other makers pay -1 and 0, or have no rewards
    and say only with `dones` when the task was done.

    Returns:
        rewards (N,): 1 at success, else 0; last (N,), bool; a sentence, empty if these are the file's own rewards.
    """

    def column(key):
        return _joined(spec, path, groups, {key: 1})[:, 0] if _has(groups, key) else None

    last = np.concatenate([np.arange(len(group["actions"])) == len(group["actions"]) - 1 for group in groups])
    rewards = column("rewards")
    values = np.array([]) if rewards is None else np.unique(rewards)
    if not np.isfinite(values).all() or values.tolist() == [0, 1]:
        return rewards, last, ""  # (what is not finite is refused with the other arrays)
    if len(values) == 2:
        told = f"rewards are {values[0]:g} and {values[1]:g}: {values[1]:g} is read as success"
        success = rewards == values[1]
    else:
        problem = "there are no rewards"
        if len(values):
            problem = f"rewards are {values[0]:.4g} to {values[-1]:.4g}, not 1 and 0"
        advice = "write rewards of 1 at success and 0 elsewhere"
        dones = column("dones")
        if dones is None or not dones.any():
            raise DatasetError(f"{path}: {problem}, and no dones mark success; {advice}.")
        if not np.isin(dones, (0, 1)).all():
            raise DatasetError(f"{path}: {problem}, and dones holds other values than 0 and 1; {advice}.")
        told, success = f"{problem}: dones are read as success", dones == 1
        before = success & ~last
        if len(values) > 1 and success[last].all():  # they mark every end, and perhaps success before it
            if not before.any():
                raise DatasetError(f"{path}: {problem}, and dones only mark the ends; {advice}.")
            success = before | (success & (rewards >= rewards[before].min()))
    count = sum(part.any() for part in np.split(success, np.flatnonzero(last)[:-1] + 1))
    remark = f"{told} (reward 1, else 0), which {count} of {len(groups)} demonstrations reach."
    return success.astype(np.float32), last, remark


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
        found, controllers = args["env_name"], args["env_kwargs"].get("controller_configs")
    except (AttributeError, KeyError, TypeError, ValueError):
        problem = "has no environment arguments (env_name, env_version and env_kwargs in data.attrs['env_args'])"
        raise DatasetError(f"{path} {problem}; pass a file in robomimic's format.") from None
    if found != ENVIRONMENTS[_name(spec)]:
        raise DatasetError(
            f"{path} was recorded in {found}, {spec.env_id} needs {ENVIRONMENTS[_name(spec)]}; "
            "did you mean another --env-id?"
        )
    version = args.get("env_version")
    if not version and "body_parts" in json.dumps(controllers):  # a form that came with 1.5
        version = "1.5"
    if not version:
        advice = 'write it into data.attrs[\'env_args\'], as "env_version": "1.4.1"'
        raise DatasetError(f"{path} does not say which version of robosuite recorded it; {advice}.")
    if not str(version).startswith(("1.4", "1.5")):
        raise DatasetError(f"{path} was recorded with robosuite {version}; 1.4 and 1.5 can be read.")
    if _is_absolute(controllers):
        problem = "holds actions that are absolute poses (control_delta false or input_type absolute)"
        raise DatasetError(f"{path} {problem}; {RELATIVE}.")
    return args | {"env_version": str(version)}


def _is_absolute(controllers) -> bool:
    """Whether any part of a controller's settings, however nested, takes absolute poses."""
    if isinstance(controllers, list):
        return any(map(_is_absolute, controllers))
    if not isinstance(controllers, dict):
        return False
    if controllers.get("control_delta") is False or controllers.get("input_type") == "absolute":
        return True
    return any(map(_is_absolute, controllers.values()))


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
        from d4rl.data import dataset_file, readable

        spec = task(env_id)
        self.task_name = _name(spec)
        path = dataset_file(spec, dataset_path)
        with readable(path), h5py.File(path) as file:
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
        if np.any(low != -1) or np.any(high != 1):
            problem = f"describes an environment whose actions are from {low.min():g} to {high.max():g}"
            raise DatasetError(f"{path} {problem}; only -1 to 1 can be played.")
        self.action_space = gymnasium.spaces.Box(low.astype(np.float32), high.astype(np.float32))
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (spec.observation_size,), np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        generator = np.random.default_rng(self.np_random.integers(2**63))
        self.robosuite_env.rng.bit_generator.state = generator.bit_generator.state  # robosuite shares this object
        if self.task_name == "lift":
            _resize_cube(self.robosuite_env)
        rng = self.robosuite_env.rng  # robosuite 1.5.1 draws from np.random what 1.5.2 draws from this
        with mock.patch.multiple(np.random, uniform=rng.uniform, randn=rng.standard_normal, rand=rng.random):
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
        raise DatasetError(f"robomimic's tasks are played in robosuite, which is missing: {INSTALL}")


def _robosuite():
    """robosuite, imported only for these tasks: it takes seconds and warns of optional parts."""
    check_robosuite()
    logging.disable(logging.WARNING)
    try:
        import robosuite
    except Exception as error:  # of any of the packages that it needs
        problem = f"robosuite cannot be imported here ({type(error).__name__}: {error})".replace("\n", " ")
        raise DatasetError(f"{problem}; {INSTALL}") from error
    finally:
        logging.disable(logging.NOTSET)
    return robosuite


def _controllers(old):
    """robosuite 1.4's controller settings in the form that 1.5 takes; one per arm stays one per arm."""
    if isinstance(old, list):
        return [_controllers(one) for one in old]
    arm = old | {"input_ref_frame": "world", "gripper": {"type": "GRIP"}}
    return {"type": "BASIC", "body_parts": {"right": arm}}
