"""Minari's datasets through this package's functions: any id with a namespace, `mujoco/hopper/expert-v0`, `my/own-v0`.

Minari (https://minari.farama.org) is D4RL's successor for data on Gymnasium: it finds or downloads a dataset by its id
and rebuilds the environment that the dataset names. It is imported only when such an id is used.

Nested observations and actions (Dict, Tuple) are joined to one row in the order of `gymnasium.spaces.flatten`, the keys
of a Dict in alphabetical order at every level, whatever order the environment has. In the mazes a row is achieved_goal,
desired_goal, observation.
"""

import json
import math
import os
import re
from functools import cache, partial

import gymnasium
import numpy as np
from gymnasium import spaces

from d4rl.tasks import DatasetError, Task

NUMBER = spaces.Box(-np.inf, np.inf, ())
KEYS = ("observations", "actions", "next_observations", "rewards", "terminals", "timeouts")


@cache
def task(env_id: str) -> Task:
    """The facts of one dataset, which is downloaded unless it is in Minari's folder.

    Sizes are those of the joined rows, the horizon is that of the environment for evaluation. A dataset without
    reference returns has 0 and 100: its score is the return itself.

    Raises:
        DatasetError: no such dataset, no connection, Minari missing; dataset unreadable, not made of numbers, or
            without an environment to evaluate in.
    """
    dataset = _load(env_id)
    for name, space in (("observations", dataset.observation_space), ("actions", dataset.action_space)):
        for part in _parts(space, space):
            kind = type(part).__name__
            if isinstance(part, spaces.Box):
                whole = name == "actions" and part.dtype.kind != "f"  # a policy's actions would be cut to these
                kind = "images (Box of uint8)" if part.dtype == np.uint8 else f"whole numbers ({part.dtype})" * whole
            if kind:
                advice = f"choose a dataset whose {name} are real numbers (Box)"
                raise DatasetError(f"{env_id}: {name} hold {kind}; {advice}.")
    horizon = _environment(dataset).get("max_episode_steps")
    if not horizon:
        advice = "record it from an environment of gymnasium.make with max_episode_steps."
        raise DatasetError(f"{env_id} names no environment with a limit of steps, so no policy can be scored: {advice}")
    low, high = _references(dataset) or (0.0, 100.0)
    return Task(
        env_id=env_id,
        observation_size=spaces.flatdim(dataset.observation_space),
        action_size=spaces.flatdim(dataset.action_space),
        max_episode_steps=int(horizon),  # some published datasets have 1000000.0
        ref_min=low,
        ref_max=high,
        bytes=None,
        sha256=None,
        path="",
    )


def note(env_id: str) -> str:
    """One line for people: what a score on this dataset is, and what it cannot be compared with. Raises as `task`."""
    task(env_id)
    dataset, score = _load(env_id), "no reference returns, so the score is the mean return"
    if references := _references(dataset):
        score = "scores 0 and 100 are returns of {:g} and {:g}".format(*references)
    return f"Minari's data, played in {_environment(dataset)['id']}: not comparable with D4RL's scores; {score}"


def read(env_id: str) -> dict[str, np.ndarray]:
    """All steps of a dataset, episode by episode.

    Minari keeps the last observation of every episode, so no step lacks its next one, not even at a time-out.

    Returns:
        observations, next_observations (N, observation size), actions (N, action size) and rewards (N,), float32;
        terminals (N,), bool: the environment ended the episode at this row, even if a time limit did so too; timeouts
        (N,), bool: the last row of every episode that it did not end, whatever cut it off.

    Raises:
        DatasetError: as `task`, or no episodes.
    """
    task(env_id)
    dataset, parts = _load(env_id), []
    try:
        for episode in dataset.iterate_episodes():
            observations = _join(dataset.observation_space, episode.observations)  # (T + 1, observation size)
            actions = _join(dataset.action_space, episode.actions)
            numbers = (episode.rewards, episode.terminations, episode.truncations)
            rewards, terminals, truncations = (_join(NUMBER, values)[:, 0] for values in numbers)
            steps = len(rewards)
            if len(observations) != steps + 1 or {len(actions), len(terminals), len(truncations)} != {steps}:
                raise ValueError(f"episode {episode.id} has {len(observations)} observations for {steps} steps")
            for name, flags in (("terminations", terminals), ("truncations", truncations)):
                if not np.isin(flags, (0, 1)).all():
                    raise ValueError(f"{name} of episode {episode.id} hold other values than 0 and 1")
                if flags[:-1].any():
                    raise ValueError(f"episode {episode.id} goes on after its end: see its {name}")
            terminals = terminals.astype(bool)
            timeouts = np.zeros(steps, bool)
            timeouts[-1] = not terminals[-1]
            parts.append((observations[:-1], actions, observations[1:], rewards, terminals, timeouts))
        if not parts:
            raise ValueError("it holds no episodes")
        return {key: np.concatenate(arrays) for key, arrays in zip(KEYS, zip(*parts, strict=True), strict=True)}
    except Exception as error:  # h5py, numpy and Minari each fail in their own way
        raise _unreadable(env_id, error) from error


def action_bounds(env_id: str) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest actions, each (action size,), float32. Raises as `task`."""
    task(env_id)
    space = spaces.flatten_space(_load(env_id).action_space)
    return space.low.astype(np.float32), space.high.astype(np.float32)


def make(env_id: str, render_mode: str | None = None) -> gymnasium.Env:
    """The environment that the dataset names for evaluation, with its horizon; observations and actions are joined.

    Raises:
        DatasetError: as `task`; the environment cannot be made here, or has other spaces than the data.
    """
    horizon = task(env_id).max_episode_steps
    dataset = _load(env_id)
    spec = _environment(dataset)
    # Not every constructor knows the keyword, and one that was given at recording must not open windows here.
    rendering = {"render_mode": render_mode} if render_mode or "render_mode" in spec["kwargs"] else {}
    name = f"{spec['id']}, the environment of {env_id},"
    needed = ", ".join(dataset.storage.metadata.get("requirements") or ["the package that the environment comes from"])
    try:
        env = dataset.recover_environment(eval_env=True, max_episode_steps=horizon, **rendering)
    except Exception as error:  # whatever the constructor of a foreign environment raises
        raise DatasetError(f"{name} cannot be made here ({reason(error)}): install {needed}.") from error
    for kind in ("observation_space", "action_space"):
        if getattr(env, kind) != getattr(dataset, kind):
            difference = f"has another {kind.replace('_', ' ')} here than in the data"
            raise DatasetError(f"{name} {difference}: try another version of {needed}.")
    # By the dataset's spaces: the environment may list the keys of a Dict in another order.
    join, split = partial(spaces.flatten, dataset.observation_space), partial(spaces.unflatten, dataset.action_space)
    env = gymnasium.wrappers.TransformObservation(env, join, spaces.flatten_space(dataset.observation_space))
    return gymnasium.wrappers.TransformAction(env, split, spaces.flatten_space(dataset.action_space))


# --- Minari ---
def _load(env_id: str):
    """The `minari.MinariDataset`: its arrays stay on disk. The network is used only if it is not in Minari's folder."""
    if not re.fullmatch(r"[-\w]+(/[-\w]+)+-v\d+", env_id):
        raise DatasetError(f"{env_id!r} is not an id of Minari: one reads NAMESPACE/NAME-vN, as D4RL/door/human-v2.")
    try:
        import minari

        local = _folder(env_id).exists()
        return minari.load_dataset(env_id) if local else _download(env_id)
    except ImportError as error:
        problem = f"{env_id} is one of Minari's datasets, and {reason(error)}"
        if "pip install" in problem:  # it says itself which of its extras it needs
            raise DatasetError(f"{problem}.") from error
        raise DatasetError(f'{problem}: pip install -e "./d4rl[minari]" in the clone.') from error
    except DatasetError:
        raise
    except Exception as error:  # file system, JSON, asserts of Minari
        raise _unreadable(env_id, error) from error


def _download(env_id: str):
    import minari

    try:
        if os.environ.get("MINARI_REMOTE", "hf://").startswith("hf://"):
            import huggingface_hub

            # Offline this fails at once, whereas Minari's own request is repeated for half a minute.
            huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=10)
        return minari.load_dataset(env_id, download=True)
    except ImportError:
        raise
    except Exception as error:  # network, server, unknown id
        problem = f"There is no dataset {_folder(env_id)}, and none can be downloaded ({reason(error)})"
        raise DatasetError(f"{problem}: check the id and the connection.") from error


def _folder(env_id: str):
    """Where Minari keeps a dataset: below $MINARI_DATASETS_PATH or ~/.minari/datasets."""
    from minari.storage import get_dataset_path

    return get_dataset_path(env_id)


def _environment(dataset) -> dict:
    """The Gymnasium spec of the environment for evaluation; {} if the dataset names none."""
    metadata = dataset.storage.metadata
    return json.loads(metadata.get("eval_env_spec") or metadata.get("env_spec") or "{}")


def _references(dataset) -> tuple[float, float] | None:
    """The returns of score 0 and 100, as `minari.get_normalized_score` takes them; None if they make no scale."""
    low, high = (dataset.storage.metadata.get(f"ref_{end}_score") for end in ("min", "max"))
    return None if low is None or high is None or low == high else (float(low), float(high))


def _unreadable(env_id: str, error: Exception) -> DatasetError:
    from d4rl.data import unreadable_here

    file = _folder(env_id) / "data" / "main_data.hdf5"
    if problem := unreadable_here(file, error):
        return DatasetError(f"{file} {problem}.")
    advice = "move it away and download or record the dataset again."
    return DatasetError(f"{_folder(env_id)} cannot be read ({reason(error)}): {advice}")


def reason(error: Exception) -> str:
    """The first line of an error of another package's."""
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")


# --- nested values ---
def _parts(space: spaces.Space, values):
    """The innermost of nested values, in the order of `gymnasium.spaces.flatten`."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        for key in space.keys() if isinstance(space, spaces.Dict) else range(len(space)):
            yield from _parts(space[key], values[key])
    else:
        yield values


def _join(space: spaces.Space, values) -> np.ndarray:
    """`gymnasium.spaces.flatten` of T values at once: arrays (T, ...), nested like the space -> (T, size), float32."""
    parts = []
    for box, part in zip(_parts(space, space), _parts(space, values), strict=True):
        rows = np.asarray(part)
        rows = rows.reshape(len(rows), -1)
        if rows.dtype.kind not in "biuf" or rows.shape[1] != math.prod(box.shape):
            raise ValueError(f"a part holds {rows.dtype} of shape {np.shape(part)}, not numbers of {box.shape} a step")
        with np.errstate(over="ignore"):  # too large for float32: infinite, which data.py refuses
            parts.append(rows.astype(np.float32))
    return np.concatenate(parts, axis=1)
