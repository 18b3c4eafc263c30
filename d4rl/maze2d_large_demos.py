"""Write the bundled dataset: three near-optimal demonstrations of maze2d-large from one start to the goal.

A breadth-first search finds the shortest way through the cells; a feedback controller pushes the ball along it and
holds it at the goal until the episode ends after 800 steps. The controller is a smooth function of the observation that
keeps off the walls, and its actions carry noise, so that 2,400 transitions also show how to return to the way.

    python -m d4rl.maze2d_large_demos

The task's references in `tasks.tsv`: ref_max is the mean return of the demonstrations (444, 432, 444), ref_min the mean
return of uniformly random actions over 1,000 episodes (0 in every one of them).
"""

from collections import deque
from pathlib import Path

import gymnasium
import h5py
import numpy as np
from gymnasium_robotics.envs.maze.maps import LARGE_MAZE

import d4rl

ENV_ID = "maze2d-large-demos-v0"
DEMONSTRATIONS = 3
START, GOAL = (1, 1), (7, 9)  # cells
SPACING = 0.01  # cells between two points of the way
LOOKAHEAD = 1.0  # cells from the ball's place on the way to the point it is pulled to
SPEED = 4.0  # cells/s on a straight; the environment clips at 5
GAIN = 0.4  # action per cell/s of velocity error
NOISE = 0.3  # standard deviation of the action noise


def shortest_way() -> np.ndarray:
    """Cells from the start to the goal, both included: (cells, 2)."""
    previous = {START: None}
    queue = deque([START])
    while queue:
        row, column = queue.popleft()
        for cell in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
            if cell not in previous and LARGE_MAZE[cell[0]][cell[1]] == 0:
                previous[cell] = (row, column)
                queue.append(cell)
    cells = [GOAL]
    while previous[cells[-1]] is not None:
        cells.append(previous[cells[-1]])
    return np.array(cells[::-1])


def dense_way() -> np.ndarray:
    """The way as points `SPACING` apart, in the observation's coordinates: (points, 2)."""
    corners = shortest_way() - 0.2  # centres of the cells
    corners[-1] = GOAL  # the goal is not at the centre of its cell
    lengths = np.linalg.norm(np.diff(corners, axis=0), axis=1)
    distance = np.concatenate([[0], np.cumsum(lengths)])  # along the way
    samples = np.append(np.arange(0, distance[-1], SPACING), distance[-1])
    return np.stack([np.interp(samples, distance, corners[:, axis]) for axis in (0, 1)], axis=1)


def controller(observation: np.ndarray, way: np.ndarray) -> np.ndarray:
    """The action (2,) towards the point `LOOKAHEAD` ahead of the ball; near the goal that is the goal itself."""
    position, velocity = observation[:2], observation[2:]
    nearest = np.argmin(np.linalg.norm(way - position, axis=1))
    target = way[min(nearest + round(LOOKAHEAD / SPACING), len(way) - 1)]
    return GAIN * (SPEED / LOOKAHEAD * (target - position) - velocity)


def demonstrations() -> dict[str, np.ndarray]:
    """The dataset as D4RL's arrays, N = 3 episodes x 800 steps; the same on every call."""
    env = gymnasium.make(ENV_ID)
    way = dense_way()
    noise = np.random.default_rng(0)
    rows = []
    for seed in range(DEMONSTRATIONS):
        observation, _ = env.reset(seed=seed)
        truncated = False
        while not truncated:
            action = controller(observation, way) + NOISE * noise.standard_normal(2)
            action = np.clip(action, -1, 1).astype(np.float32)
            next_observation, reward, terminated, truncated, _ = env.step(action)
            rows.append((observation, action, reward, terminated, truncated))
            observation = next_observation
    env.close()
    observations, actions, rewards, terminals, timeouts = zip(*rows, strict=True)
    return {
        "observations": np.array(observations, np.float32),
        "actions": np.array(actions, np.float32),
        "rewards": np.array(rewards, np.float32),
        "terminals": np.array(terminals),
        "timeouts": np.array(timeouts),
    }


def main(path: str | Path):
    """Write the demonstrations to an HDF5 file in D4RL's format and print their returns."""
    dataset = demonstrations()
    with h5py.File(path, "w") as file:
        for key, values in dataset.items():
            file.create_dataset(key, data=values, compression="gzip")
    print(f"{path}: returns {d4rl.episode_returns(ENV_ID, dataset)}")


if __name__ == "__main__":
    main(Path(__file__).with_name(f"{ENV_ID}.hdf5"))
