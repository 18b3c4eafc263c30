"""AntMaze and maze2d: starts, goals, rewards, models, walls, and controllers that reach every goal. Pictures.

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
    "large": "111111111111 100001000001 101101010101 100000010001 101111011101 "
    "100101000001 110101010111 100100010001 111111111111",
}
MAZES = {
    name: np.array([[int(cell) for cell in row] for row in rows.split()]) for name, rows in WALLS.items()
}
BALL_GOALS = {"umaze": (1, 1), "medium": (6, 6), "large": (7, 9)}
ANT_GOALS = {"umaze": (3, 1), "medium": (6, 6), "large": (7, 9)}
BALLS = {name: f"maze2d-{name}-v1" for name in MAZES}
ANTS = {"umaze": "antmaze-umaze-v2", "medium": "antmaze-medium-play-v2", "large": "antmaze-large-diverse-v2"}
each_maze = pytest.mark.parametrize("maze", MAZES)


def metres(cells):
    """x and y of the centres of cells (..., 2) in AntMaze."""
    return 4.0 * (np.asarray(cells)[..., ::-1] - 1)


# --- both ---
@pytest.mark.parametrize("env_id", [ANTS["medium"], BALLS["medium"]])
def test_seeds_reproduce(env_id):
    """Two environments agree, one agrees with its own past, another seed differs."""
    runs, spec = [], d4rl.task(env_id)
    first, second = gymnasium.make(env_id), gymnasium.make(env_id)
    assert first.observation_space.shape == (spec.observation_size,)
    np.testing.assert_array_equal(first.action_space.low, [-1] * spec.action_size)
    np.testing.assert_array_equal(first.action_space.high, [1] * spec.action_size)
    for env, seed in ((first, 1), (second, 1), (first, 1), (first, 2)):
        env.action_space.seed(0)
        rows = [env.reset(seed=seed)[0]] + [env.step(env.action_space.sample())[0] for _ in range(20)]
        rows += [env.reset()[0]]  # the next episode, too
        assert all(env.observation_space.contains(row) for row in rows)
        runs.append(np.array([np.append(row, env.unwrapped.goal) for row in rows]))
    np.testing.assert_array_equal(runs[1:3], [runs[0]] * 2)
    assert not np.isclose(runs[3][:, :2], runs[0][:, :2], rtol=1e-9).any()


# --- the ant ---
def test_play_and_diverse_are_one_environment():
    names = [name for name in d4rl.TASKS if name.startswith("antmaze")]
    assert len(names) == 6
    for name in names:
        spec, maze = gymnasium.spec(name), name.split("-")[1]
        assert (spec.entry_point, spec.kwargs) == ("d4rl.antmaze:AntMazeEnv", {"maze": maze})
        assert d4rl.task(name).max_episode_steps == (700 if maze == "umaze" else 1000)


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
    assert (0 <= goals).all() and (goals <= 1.5).all()
    assert (goals.min(axis=0) < 0.1).all() and (1.4 < goals.max(axis=0)).all()
    np.testing.assert_allclose([(goals < 0.5).mean(axis=0), (goals > 1).mean(axis=0)], 0.25, atol=0.05)
    assert abs(np.corrcoef(goals.T)[0, 1]) < 0.1

    noise = starts[:, :15] - [0, 0, 0.75, 1, 0, 0, 0, *np.zeros(8)]
    others = np.delete(noise, range(3, 7), axis=1)  # x, y, z and the joints
    assert (np.abs(others).max(axis=0) > 0.095).all() and np.abs(others).max() <= 0.1
    np.testing.assert_allclose(others.std(axis=0), 0.1 / np.sqrt(3), atol=0.005)
    np.testing.assert_allclose(np.corrcoef(others.T), np.eye(11), atol=0.15)
    np.testing.assert_allclose(np.linalg.norm(starts[:, 3:7], axis=1), 1, atol=1e-12)
    assert (np.abs(starts[:, 4:7] / starts[:, 3:4]).max(axis=0) > 0.09).all()
    np.testing.assert_allclose(starts[:, 15:].std(axis=0), 0.1, atol=0.01)
    np.testing.assert_allclose(starts[:, 15:].mean(axis=0), 0, atol=0.015)


def test_ant_observation_and_model():
    env = gymnasium.make(ANTS["umaze"]).unwrapped
    observation, _ = env.reset(seed=0)
    model, data = env.ant.model, env.ant.data
    joints = [f"{joint}_{leg}" for leg in (1, 2, 3, 4) for joint in ("hip", "ankle")]
    parts = [data.body("torso").xpos, data.body("torso").xquat, *(data.joint(name).qpos for name in joints)]
    parts += [data.joint("root").qvel, *(data.joint(name).qvel for name in joints)]
    np.testing.assert_allclose(observation, np.concatenate(parts), rtol=0, atol=1e-12)

    assert (model.opt.timestep, env.ant.frame_skip, env.metadata["render_fps"]) == (0.02, 5, 10)
    np.testing.assert_array_equal(model.geom_solimp, [[0.8, 0.8, 0.01, 0.5, 2]] * model.ngeom)
    assert model.body_mass.sum() == pytest.approx(0.9109, abs=1e-4)  # kg
    env.step(np.array([-1.5, -1, -0.5, -0.1, 0.1, 0.5, 1, 1.5]))
    torques = [data.joint(name).qfrc_actuator[0] for name in joints[6:] + joints[:6]]
    np.testing.assert_allclose(torques, [-30, -30, -15, -3, 3, 15, 30, 30])


def test_ant_reward_and_end():
    env = gymnasium.make(ANTS["medium"])
    for seed in range(5):
        env.reset(seed=seed)
        ant, goal = env.unwrapped.ant, env.unwrapped.goal
        away = metres(ANT_GOALS["medium"]) - goal  # from the walls, to the middle of the cell
        for distance, close in ((0.4, True), (0.48, True), (0.52, False), (0.6, False)):
            position = ant.init_qpos.copy()
            position[:2] = goal + distance * away / np.linalg.norm(away)
            ant.set_state(position, np.zeros(14))
            observation, *outcome, info = env.step(np.zeros(8))
            assert np.linalg.norm(observation[:2] - goal) == pytest.approx(distance, abs=0.015)
            assert (outcome, info) == ([float(close), close, False], {"success": close})
            assert [type(value) for value in outcome] == [float, bool, bool]
    ant.set_state(np.array([0, 0, 0.3, 0, 1, 0, 0, *np.zeros(8)]), np.zeros(14))  # on its back
    assert [env.step(np.zeros(8))[2] for _ in range(20)] == [False] * 20  # a fall ends nothing


@each_maze
def test_ant_walls(maze):
    model = gymnasium.make(ANTS[maze]).unwrapped.ant.model
    blocks = model.geom_type == mujoco.mjtGeom.mjGEOM_BOX
    expected = metres(np.argwhere(MAZES[maze] == 1))
    np.testing.assert_array_equal(model.geom_size[blocks], [[2, 2, 1]] * len(expected))
    assert {tuple(place) for place in model.geom_pos[blocks]} == {(x, y, 1.0) for x, y in expected}
    assert model.geom_contype[blocks].all() and model.geom_conaffinity[blocks].all()  # they stop the ant


def gait(observation, step, heading):
    """Torques (8,) of a trot towards `heading` (rad); the ant does not turn, it walks sideways as well."""
    w, x, y, z = observation[3:7]
    yaw = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    legs = np.pi / 4 + np.pi / 2 * np.arange(4)  # where they point to
    aside = heading - yaw - legs
    # Two diagonal pairs of legs, eight steps a stride.
    phase = 2 * np.pi * step / 8 + np.array([0, np.pi, 0, np.pi])
    swing = np.cos(phase + np.pi / 4)  # falls while the foot is down: back past the torso
    hips = 0.6 * np.sin(aside) * swing
    knees = 0.8 + 0.2 * np.sin(phase) - 0.3 * np.cos(aside) * swing
    targets = np.stack([hips, [1, -1, -1, 1] * knees], axis=1)
    angles, velocities = observation[7:15].reshape(4, 2), observation[21:29].reshape(4, 2)
    torques = 1.5 * (targets - angles) - 0.1 * velocities
    return np.clip(np.roll(torques, 1, axis=0).ravel(), -1, 1)  # the actuators begin with the fourth leg


@each_maze
def test_ant_walks_to_the_goal(maze, monkeypatch):
    """From centre to centre of the cells on the shortest way, within D4RL's time limit."""
    env = gymnasium.make(ANTS[maze])
    observation, _ = env.reset(seed=0)
    monkeypatch.setattr(demos, "LARGE_MAZE", MAZES[maze])
    monkeypatch.setattr(demos, "GOAL", ANT_GOALS[maze])
    corners = [*metres(demos.shortest_way())[:-1], env.unwrapped.goal]
    rewards, terminated, truncated = [], False, False
    while not (truncated or terminated):
        while len(corners) > 1 and np.linalg.norm(corners[0] - observation[:2]) < 1:
            corners.pop(0)
        x, y = corners[0] - observation[:2]
        action = gait(observation, len(rewards), np.arctan2(y, x))
        observation, reward, terminated, truncated, info = env.step(action)
        rewards.append(reward)
        row, column = np.round(observation[1::-1] / 4).astype(int) + 1
        assert MAZES[maze][row, column] == 0
    assert (sum(rewards), terminated, info["success"]) == (1, True, True)


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
            first, second, *_, last = [env.step(np.array(direction))[0] for _ in range(25)]
            np.testing.assert_allclose((second - first)[:2] / env.ball.dt, second[2:], atol=1e-9)  # cells/s
            moved = last[:2] - (np.array([row, column]) - 0.2)
            assert np.abs(moved[direction.index(0)]) < 0.01
            along = moved @ direction
            if walls[row + direction[0], column + direction[1]]:  # half a cell less the ball's radius
                assert along == pytest.approx(0.4, abs=0.02)
            else:
                assert along > 0.6


@pytest.mark.parametrize("env_id", [*BALLS.values(), "maze2d-large-demos-v0"])
def test_ball_starts(env_id):
    env, walls = gymnasium.make(env_id), MAZES[env_id.split("-")[1]]
    env.reset(seed=0)
    starts = np.array([env.reset()[0] for _ in range(1000)])
    cells, counts = np.unique(np.round(starts[:, :2]).astype(int), axis=0, return_counts=True)
    np.testing.assert_array_equal(cells, [(1, 1)] if "demos" in env_id else np.argwhere(walls == 0))
    assert counts.min() > 0.3 * counts.mean() and counts.max() < 2 * counts.mean()
    noise = starts[:, :2] - np.round(starts[:, :2])
    assert np.abs(noise).max() <= 0.1
    assert (noise.max(axis=0) > 0.095).all() and (noise.min(axis=0) < -0.095).all()
    np.testing.assert_allclose(starts[:, 2:].std(axis=0), 0.1, atol=0.01)
    np.testing.assert_allclose(starts[:, 2:].mean(axis=0), 0, atol=0.015)


@each_maze
def test_ball_reward(maze):
    env, goal = gymnasium.make(BALLS[maze]).unwrapped, np.array(BALL_GOALS[maze])
    rows, columns = MAZES[maze].shape
    env.reset(seed=0)
    # Towards the middle of the goal's cell, which is 0.2 off in both directions, as far as its walls allow.
    offsets = {(-0.52, 0): 0, (-0.48, 0): 1, (0, -0.52): 0, (0, -0.48): 1, (-0.4, -0.4): 0}
    for offset, expected in offsets.items():
        row, column = goal + offset
        env.ball.reset()
        env.ball.set_state(np.array([column + 0.7 - columns / 2, rows / 2 - 0.7 - row]), np.zeros(2))
        observation, reward, terminated, truncated, info = env.step(np.zeros(2))
        np.testing.assert_allclose(observation[:2], [row, column], atol=0.01)
        assert (reward, terminated, truncated, info["success"]) == (expected, False, False, bool(expected))
    assert type(reward) is float and type(info["success"]) is bool


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
    ids, path = [ANTS["large"], BALLS["umaze"]], tmp_path / "frames.npy"
    command = [sys.executable, "-c", RENDER, str(path), *ids]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"MUJOCO_GL": "egl"})
    if done.returncode == 77:
        pytest.skip(f"no OpenGL, MUJOCO_GL=egl cannot render here: {done.stdout.strip()}")
    assert done.returncode == 0, done.stderr
    assert "Adroit" not in done.stderr  # Gymnasium-Robotics' notice, of no use here
    for env_id, frame in zip(ids, np.load(path), strict=True):
        env = gymnasium.make(env_id).unwrapped
        env.reset(seed=0)
        rows, columns = MAZES[env_id.split("-")[1]].shape
        if "ant" in env_id:  # to rows up and columns right of the middle of the maze
            right, up = env.goal / 4 - [(columns - 3) / 2, (rows - 3) / 2]
        else:
            right, up = env.goal[1] + 0.7 - columns / 2, rows / 2 - 0.7 - env.goal[0]
        red = np.argwhere((frame[..., 0] > 150) & (frame[..., 1:].max(axis=2) < 60))
        pixels = 240 / np.tan(np.radians(22.5)) / (1.25 * max(rows, columns) - 0.2)  # a cell, at its height
        assert len(red) > 20
        middle = [240 - pixels * up, 240 + pixels * right]
        np.testing.assert_allclose(red.mean(axis=0), middle, atol=3, err_msg=env_id)
