"""AntMaze and maze2d: starts, goals, rewards, models, walls, pictures, and controllers that reach every goal.

`test_original_mazes.py` compares them with D4RL's own code.
"""

import os
import subprocess
import sys

import gymnasium
import mujoco
import numpy as np
import pytest

import d4rl
from d4rl import maze2d_large_demos as demos

WALLS = {  # 1 is a wall
    "umaze": "11111 10001 11101 10001 11111",
    "medium": "11111111 10011001 10010001 11000111 10010001 10100101 10001001 11111111",
    "large": "111111111111 100001000001 101101010101 100000010001 101111011101 100101000001 110101010111 100100010001 "
    "111111111111",
}
MAZES = {name: np.array([[int(cell) for cell in row] for row in rows.split()]) for name, rows in WALLS.items()}
BALL_GOALS = {"umaze": (1, 1), "medium": (6, 6), "large": (7, 9)}
ANT_GOALS = {"umaze": (3, 1), "medium": (6, 6), "large": (7, 9)}
BALLS = {name: f"maze2d-{name}-v1" for name in MAZES}
ANTS = {"umaze": "antmaze-umaze-v2", "medium": "antmaze-medium-play-v2", "large": "antmaze-large-diverse-v2"}
each_maze = pytest.mark.parametrize("maze", MAZES)


def metres(cells):
    """x and y of the centres of cells (..., 2) in AntMaze."""
    return 4.0 * (np.asarray(cells)[..., ::-1] - 1)


def set_way(monkeypatch, maze, start, goal):
    """Let `demos.shortest_way` and `demos.dense_way` search this maze for a way from cell to cell."""
    for name, value in {"LARGE_MAZE": MAZES[maze], "START": start, "GOAL": goal}.items():
        monkeypatch.setattr(demos, name, value)


# --- both ---
@pytest.mark.parametrize("env_id", [*ANTS.values(), *BALLS.values()])
def test_time_limit_and_types(env_id):
    env, steps = gymnasium.make(env_id), d4rl.task(env_id).max_episode_steps
    observation, info = env.reset(seed=0)
    for step in range(1, steps + 1):
        assert env.observation_space.contains(observation)
        observation, reward, terminated, truncated, info = env.step(np.zeros(env.action_space.shape, np.float32))
        assert (terminated, truncated) == (False, step == steps)
    assert type(reward) is float and type(info["success"]) is bool


@pytest.mark.parametrize("env_id", [*ANTS.values(), *BALLS.values()])
def test_seeds_reproduce(env_id):
    """Two environments agree, one agrees with its own past, another seed differs."""
    runs = []
    first, second = gymnasium.make(env_id), gymnasium.make(env_id)
    for env, seed in ((first, 1), (second, 1), (first, 1), (first, 2)):
        env.action_space.seed(0)
        rows = [env.reset(seed=seed)[0]] + [env.step(env.action_space.sample())[0] for _ in range(50)]
        rows += [env.reset()[0]]  # the next episode, too
        runs.append((np.array(rows), env.unwrapped.goal))
    for rows, goal in runs[1:3]:
        np.testing.assert_array_equal(rows, runs[0][0])
        np.testing.assert_array_equal(goal, runs[0][1])
    assert not np.isclose(runs[3][0], runs[0][0]).all(axis=1).any()


# --- the ant ---
def test_play_and_diverse_are_one_environment():
    names = [name for name in d4rl.tasks.TASKS if name.startswith("antmaze")]
    specs = [gymnasium.spec(name) for name in names]
    assert len(names) == 6
    for name, spec in zip(names, specs, strict=True):
        maze = name.split("-")[1]
        assert (spec.entry_point, spec.kwargs) == ("d4rl.antmaze:AntMazeEnv", {"maze": maze})
        assert spec.max_episode_steps == (700 if maze == "umaze" else 1000)


@each_maze
def test_ant_starts_and_goals(maze):
    env = gymnasium.make(ANTS[maze])
    env.reset(seed=0)
    starts, goals = [], []
    for _ in range(1000):  # without seeds: as an evaluation goes on
        starts.append(env.reset()[0])
        goals.append(env.unwrapped.goal)
    starts, goals = np.array(starts), np.array(goals) - metres(ANT_GOALS[maze])
    # U(0, 1) + U(0, 0.5): a trapezium on [0, 1.5], a quarter of it below 0.5, another above 1
    assert (0 <= goals.min(axis=0)).all() and (goals.min(axis=0) < 0.1).all()
    assert (goals.max(axis=0) <= 1.5).all() and (1.4 < goals.max(axis=0)).all()
    np.testing.assert_allclose([(goals < 0.5).mean(axis=0), (goals > 1).mean(axis=0)], 0.25, atol=0.05)
    assert abs(np.corrcoef(goals.T)[0, 1]) < 0.1
    assert len(np.unique(goals, axis=0)) == 1000

    noise = starts[:, :15] - [0, 0, 0.75, 1, 0, 0, 0, *np.zeros(8)]
    others = np.delete(noise, range(3, 7), axis=1)  # x, y, z and the joints
    assert (others.min(axis=0) < -0.095).all() and (0.095 < others.max(axis=0)).all() and np.abs(others).max() <= 0.1
    np.testing.assert_allclose(others.std(axis=0), 0.1 / np.sqrt(3), atol=0.005)
    np.testing.assert_allclose(np.linalg.norm(starts[:, 3:7], axis=1), 1, atol=1e-12)
    assert (np.abs(starts[:, 4:7] / starts[:, 3:4]).max(axis=0) > 0.09).all()
    np.testing.assert_allclose(starts[:, 15:].std(axis=0), 0.1, atol=0.01)
    np.testing.assert_allclose(starts[:, 15:].mean(axis=0), 0, atol=0.015)


def test_ant_observation():
    env = gymnasium.make(ANTS["umaze"]).unwrapped
    observation, _ = env.reset(seed=0)
    data = env.ant.data
    np.testing.assert_allclose(observation[:3], data.body("torso").xpos, atol=1e-12)
    np.testing.assert_allclose(observation[3:7], data.body("torso").xquat, atol=1e-12)
    joints = [f"{joint}_{leg}" for leg in (1, 2, 3, 4) for joint in ("hip", "ankle")]
    for start, values in ((7, "qpos"), (21, "qvel")):
        np.testing.assert_array_equal(
            observation[start : start + 8], [getattr(data.joint(name), values)[0] for name in joints]
        )
    np.testing.assert_array_equal(observation[15:21], data.joint("root").qvel)


def test_ant_model():
    env = gymnasium.make(ANTS["umaze"]).unwrapped
    model, actuators = env.ant.model, ["hip_4", "ankle_4", "hip_1", "ankle_1", "hip_2", "ankle_2", "hip_3", "ankle_3"]
    assert (model.opt.timestep, env.ant.frame_skip, env.ant.dt, env.metadata["render_fps"]) == (0.02, 5, 0.1, 10)
    assert [model.joint(joint).name for joint in model.actuator_trnid[:, 0]] == actuators
    np.testing.assert_array_equal(model.geom_solimp, [[0.8, 0.8, 0.01, 0.5, 2]] * model.ngeom)
    assert model.body_mass.sum() == pytest.approx(0.9109, abs=1e-4)  # kg
    env.reset(seed=0)
    action = np.array([-1.5, -1, -0.5, -0.1, 0.1, 0.5, 1, 1.5])
    env.step(action)
    torques = [env.ant.data.joint(name).qfrc_actuator[0] for name in actuators]
    np.testing.assert_allclose(torques, [-30, -30, -15, -3, 3, 15, 30, 30])


@each_maze
def test_ant_reward_and_end(maze):
    env = gymnasium.make(ANTS[maze])
    for seed in range(5):
        env.reset(seed=seed)
        ant, goal = env.unwrapped.ant, env.unwrapped.goal
        away = metres(ANT_GOALS[maze]) - goal  # from the walls, to the middle of the cell
        for distance, expected in ((0.4, 1.0), (0.48, 1.0), (0.52, 0.0), (0.6, 0.0)):
            position = ant.init_qpos.copy()
            position[:2] = goal + distance * away / np.linalg.norm(away)
            ant.set_state(position, np.zeros(14))
            observation, reward, terminated, truncated, info = env.step(np.zeros(8))
            assert np.linalg.norm(observation[:2] - goal) == pytest.approx(distance, abs=0.015)
            assert (reward, terminated, truncated) == (expected, bool(expected), False)
            assert info["success"] is bool(expected)


def test_a_fall_ends_nothing():
    env = gymnasium.make(ANTS["umaze"])
    env.reset(seed=0)
    env.unwrapped.ant.set_state(np.array([0, 0, 0.3, 0, 1, 0, 0, *np.zeros(8)]), np.zeros(14))  # on its back
    for _ in range(20):
        _, reward, terminated, _, info = env.step(np.zeros(8))
        assert (reward, terminated, info["success"]) == (0, False, False)


@each_maze
def test_ant_walls(maze):
    env = gymnasium.make(ANTS[maze]).unwrapped
    model = env.ant.model
    blocks = model.geom_type == mujoco.mjtGeom.mjGEOM_BOX
    expected = metres(np.argwhere(MAZES[maze] == 1))
    np.testing.assert_array_equal(model.geom_size[blocks], [[2, 2, 1]] * len(expected))
    assert {tuple(place) for place in model.geom_pos[blocks]} == {(x, y, 1.0) for x, y in expected}
    for heading, axis, sign, wall in ((np.pi, 0, -1, True), (-np.pi / 2, 1, -1, True), (0, 0, 1, False)):
        observation, _ = env.reset(seed=0)
        for step in range(100):
            observation = env.step(gait(observation, step, heading))[0]
        if wall:  # of cell (1, 1), 2 m from its centre; the torso's radius is 0.25 m
            assert 0.5 < sign * observation[axis] < 1.75
        else:
            assert sign * observation[axis] > 3


def gait(observation, step, heading):
    """Torques (8,) of a trot towards `heading` (rad); the ant does not turn, since it walks sideways as well."""
    w, x, y, z = observation[3:7]
    yaw = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    legs = np.pi / 4 + np.pi / 2 * np.arange(4)  # where they point to
    aside = heading - yaw - legs
    phase = 2 * np.pi * step / 8 + np.array([0, np.pi, 0, np.pi])  # two diagonal pairs of legs, eight steps a stride
    swing = np.cos(phase + np.pi / 4)  # falls while the foot is down: back past the torso
    hips = 0.6 * np.sin(aside) * swing
    knees = 0.8 + 0.2 * np.sin(phase) - 0.3 * np.cos(aside) * swing
    targets = np.stack([hips, [1, -1, -1, 1] * knees], axis=1)
    angles, velocities = observation[7:15].reshape(4, 2), observation[21:29].reshape(4, 2)
    torques = 1.5 * (targets - angles) - 0.1 * velocities
    return np.clip(np.roll(torques, 1, axis=0).ravel(), -1, 1)  # the actuators begin with the fourth leg


@each_maze
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ant_walks_to_the_goal(maze, seed, monkeypatch):
    """From centre to centre of the cells on the shortest way, within D4RL's time limit."""
    env = gymnasium.make(ANTS[maze])
    observation, _ = env.reset(seed=seed)
    set_way(monkeypatch, maze, (1, 1), ANT_GOALS[maze])
    corners = [*metres(demos.shortest_way())[:-1], env.unwrapped.goal]
    rewards, truncated = [], False
    while not (truncated or sum(rewards)):
        while len(corners) > 1 and np.linalg.norm(corners[0] - observation[:2]) < 1:
            corners.pop(0)
        x, y = corners[0] - observation[:2]
        observation, reward, terminated, truncated, info = env.step(gait(observation, len(rewards), np.arctan2(y, x)))
        rewards.append(reward)
        row, column = np.round(observation[1::-1] / 4).astype(int) + 1
        assert MAZES[maze][row, column] == 0
    assert (sum(rewards), terminated, truncated, info["success"]) == (1, True, False, True)
    print(f"{ANTS[maze]}, seed {seed}: the goal after {len(rewards)} of {env.spec.max_episode_steps} steps")


# --- the ball ---
@each_maze
def test_ball_walls(maze):
    """From the middle of every free cell in four directions: into the next cell, or as far as its wall."""
    env, walls = gymnasium.make(BALLS[maze]).unwrapped, MAZES[maze]
    rows, columns = walls.shape
    env.reset(seed=0)
    for row, column in np.argwhere(walls == 0):
        for direction in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            env.ball.reset()
            env.ball.set_state(np.array([column + 0.5 - columns / 2, rows / 2 - 0.5 - row]), np.zeros(2))
            for _ in range(40):
                observation = env.step(np.array(direction))[0]
            moved = observation[:2] - (np.array([row, column]) - 0.2)
            assert np.abs(moved[direction.index(0)]) < 0.01
            along = moved @ direction
            if walls[row + direction[0], column + direction[1]]:  # half a cell less the ball's radius
                assert along == pytest.approx(0.4, abs=0.02)
            else:
                assert along > 0.6


@each_maze
def test_ball_starts(maze):
    env = gymnasium.make(BALLS[maze])
    starts = np.array([env.reset(seed=seed)[0] for seed in range(1000)])
    cells, counts = np.unique(np.round(starts[:, :2]).astype(int), axis=0, return_counts=True)
    np.testing.assert_array_equal(cells, np.argwhere(MAZES[maze] == 0))
    assert counts.min() > 0.3 * counts.mean() and counts.max() < 2 * counts.mean()
    noise = starts[:, :2] - np.round(starts[:, :2])
    assert (0.095 < np.abs(noise).max(axis=0)).all() and np.abs(noise).max() <= 0.1
    np.testing.assert_allclose(starts[:, 2:].std(axis=0), 0.1, atol=0.01)


@each_maze
def test_ball_reward(maze):
    env, goal = gymnasium.make(BALLS[maze]).unwrapped, np.array(BALL_GOALS[maze])
    rows, columns = MAZES[maze].shape
    env.reset(seed=0)
    # Towards the middle of the goal's cell, which is 0.2 off in both directions, and as far as its walls allow.
    for offset, expected in (((-0.52, 0), 0), ((-0.48, 0), 1), ((0, -0.52), 0), ((0, -0.48), 1), ((-0.4, -0.4), 0)):
        row, column = goal + offset
        env.ball.reset()
        env.ball.set_state(np.array([column + 0.7 - columns / 2, rows / 2 - 0.7 - row]), np.zeros(2))
        observation, reward, terminated, truncated, info = env.step(np.zeros(2))
        np.testing.assert_allclose(observation[:2], [row, column], atol=0.01)
        assert (reward, terminated, truncated, info["success"]) == (expected, False, False, bool(expected))


@each_maze
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ball_is_pushed_to_the_goal(maze, seed, monkeypatch):
    """The demonstrations' controller, from any start; it stays at the goal to the end."""
    env = gymnasium.make(BALLS[maze])
    observation, _ = env.reset(seed=seed)
    set_way(monkeypatch, maze, tuple(np.round(observation[:2]).astype(int)), BALL_GOALS[maze])
    way, rewards, truncated = demos.dense_way(), [], False
    while not truncated:
        observation, reward, terminated, truncated, _ = env.step(np.clip(demos.controller(observation, way), -1, 1))
        rewards.append(reward)
        assert not terminated
    first = rewards.index(1)
    assert len(rewards) == d4rl.task(BALLS[maze]).max_episode_steps and all(rewards[first + 50 :])
    print(f"{BALLS[maze]}, seed {seed}: {first} steps to the goal, return {sum(rewards):.0f}")


# --- pictures ---
RENDER = """
import sys, d4rl, gymnasium, numpy
frames = []
for env_id in sys.argv[2:]:
    env = gymnasium.make(env_id, render_mode="rgb_array")
    env.reset(seed=0)
    try:
        frames.append(env.render())
    except Exception as error:
        print(error)
        raise SystemExit(77)
numpy.save(sys.argv[1], frames)
"""


def test_pictures_show_the_goal(tmp_path):
    ids, path = [*ANTS.values(), *BALLS.values()], tmp_path / "frames.npy"
    command = [sys.executable, "-c", RENDER, str(path), *ids]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"MUJOCO_GL": "egl"})
    if done.returncode == 77:
        pytest.skip(f"no OpenGL, MUJOCO_GL=egl cannot render here: {done.stdout.strip()}")
    assert done.returncode == 0, done.stderr
    assert "Adroit" not in done.stderr  # Gymnasium-Robotics' notice, of no use here
    for env_id, frame in zip(ids, np.load(path), strict=True):
        env = gymnasium.make(env_id).unwrapped
        env.reset(seed=0)
        maze, cell = env_id.split("-")[1], 4.0 if "ant" in env_id else 1.0
        rows, columns = MAZES[maze].shape
        if cell == 4:  # to rows up and columns right of the middle of the maze
            right, up = env.goal / cell - [(columns - 3) / 2, (rows - 3) / 2]
        else:
            right, up = env.goal[1] + 0.7 - columns / 2, rows / 2 - 0.7 - env.goal[0]
        assert frame.shape == (480, 480, 3)
        red = np.argwhere((frame[..., 0] > 150) & (frame[..., 1:].max(axis=2) < 60))
        scale = (
            240 / np.tan(np.radians(22.5)) / (1.25 * max(rows, columns) - 0.2)
        )  # pixels a cell, at the goal's height
        assert len(red) > 20
        np.testing.assert_allclose(red.mean(axis=0), [240 - scale * up, 240 + scale * right], atol=3, err_msg=env_id)
