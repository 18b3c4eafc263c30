"""Kitchen: observations, noise, goals, rewards and episode ends, against D4RL's definition of them."""

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium_robotics.envs.franka_kitchen.kitchen_env import KitchenEnv as FrankaKitchen

import d4rl

COMPLETE, PARTIAL, MIXED = IDS = ["kitchen-complete-v0", "kitchen-partial-v0", "kitchen-mixed-v0"]
GOALS = {  # task: (joint indices, positions in rad and m)
    "bottom burner": ([11, 12], [-0.88, -0.01]),
    "top burner": ([15, 16], [-0.92, -0.01]),
    "light switch": ([17, 18], [-0.69, -0.05]),
    "slide cabinet": ([19], [0.37]),
    "hinge cabinet": ([20, 21], [0.0, 1.45]),
    "microwave": ([22], [-0.75]),
    "kettle": ([23, 24, 25, 26, 27, 28, 29], [-0.23, 0.75, 1.62, 0.99, 0.0, 0.0, -0.06]),
}
TASKS = {
    COMPLETE: ["microwave", "kettle", "light switch", "slide cabinet"],
    PARTIAL: ["microwave", "kettle", "light switch", "slide cabinet"],
    MIXED: ["microwave", "kettle", "bottom burner", "light switch"],
}
AMPLITUDES = np.repeat([0.01, 5e-4, 5e-5, 5e-4, 0.01, 5e-4, 0.01, 5e-4], [9, 2, 6, 3, 3, 3, 3, 1])
STILL = np.zeros(9)


def put(env, task: str, share: float = 1.0) -> None:
    """Move a task's joints by this share of the way from the start to their goal."""
    indices, goal = GOALS[task]
    qpos = env.unwrapped.data.qpos.copy()
    start = env.unwrapped.init_qpos[indices]
    qpos[indices] = start + share * (goal - start)
    env.unwrapped.set_state(qpos, np.zeros(29))


@pytest.mark.parametrize("env_id", IDS)
def test_sizes_and_observation(env_id):
    """Positions, of which the start's quaternion is of length one, and a goal for the four tasks only."""
    env, spec = gymnasium.make(env_id, render_mode="rgb_array"), d4rl.task(env_id)
    assert env.unwrapped.render_mode == "rgb_array"
    assert env.observation_space.shape == (60,) == (spec.observation_size,)
    np.testing.assert_array_equal([env.action_space.low, env.action_space.high], d4rl.action_bounds(env_id))
    assert (spec.action_size, spec.max_episode_steps, spec.ref_min, spec.ref_max) == (9, 280, 0, 4)
    goal = np.zeros(30)
    for task in TASKS[env_id]:
        indices, positions = GOALS[task]
        goal[indices] = positions
    runs = []
    for seed in (3, 3, 4):
        runs.append([env.reset(seed=seed)[0], *[env.step(np.ones(9))[0] for _ in range(3)]])
        assert all(env.observation_space.contains(observation) for observation in runs[-1])
        np.testing.assert_array_equal(np.array(runs[-1])[:, 30:], [goal] * 4)
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.isclose(np.array(runs[0])[:, :9], np.array(runs[2])[:, :9], rtol=0, atol=1e-9).any()


def test_start_and_noise():
    """Noise is uniform, independent from joint to joint, anew at every look."""
    env = gymnasium.make(COMPLETE)
    env.reset(seed=0)
    start = FrankaKitchen().robot_env.init_qpos
    start[26:] /= np.linalg.norm(start[26:])
    np.testing.assert_allclose(env.unwrapped.data.qpos, start, rtol=0, atol=1e-12)
    noise = (np.array([env.reset()[0][:30] for _ in range(2000)]) - start) / AMPLITUDES
    assert np.abs(noise).max() <= 1 + 1e-9
    np.testing.assert_allclose(noise.mean(axis=0), 0, atol=0.06)
    np.testing.assert_allclose(noise.std(axis=0), 1 / np.sqrt(3), rtol=0.05)
    np.testing.assert_allclose(np.corrcoef(noise.T), np.eye(30), atol=0.1)
    np.testing.assert_allclose((noise[1:] * noise[:-1]).mean(axis=0), 0, atol=0.06)


def test_action_is_a_velocity_from_the_observed_position():
    env = gymnasium.make(COMPLETE)
    observation, _ = env.reset(seed=0)
    rng = np.random.default_rng(0)
    low = [-2.9, -1.8, -2.9, -3.1, -2.9, 0, -2.9, 0, 0]
    high = [2.9, 1.8, 2.9, 0, 2.9, 3.8, 2.9, 0.04, 0.04]
    for _ in range(30):
        action = rng.uniform(-1.5, 1.5, 9)
        target = observation[:9] + 2 * 0.08 * np.clip(action, -1, 1)
        before = env.unwrapped.data.time
        observation, *_ = env.step(action)
        np.testing.assert_allclose(env.unwrapped.data.ctrl, np.clip(target, low, high), rtol=0, atol=1e-12)
        assert env.unwrapped.data.time - before == pytest.approx(0.08)


@pytest.mark.parametrize("env_id", [COMPLETE, MIXED])
def test_reward_once_per_task(env_id):
    env = gymnasium.make(env_id)
    for turn in (1, -1):  # in order and backwards; an episode leaves nothing behind for the next
        env.reset(seed=0)
        completed = []
        for task in GOALS.keys() - TASKS[env_id]:
            put(env, task)
            _, reward, terminated, _, info = env.step(STILL)
            assert (reward, terminated, info) == (0.0, False, {"success": False, "completed": []})
        for task in TASKS[env_id][::turn]:
            put(env, task)
            completed.append(task)
            last = len(completed) == 4
            _, reward, terminated, truncated, info = env.step(STILL)
            assert (reward, terminated, truncated) == (1.0, last, False)
            assert info == {"success": last, "completed": completed}
            if not last:
                for share in (1.0, 0.0, 1.0):  # staying there, undone, done again: no more reward
                    put(env, task, share)
                    assert env.step(STILL)[1:3] == (0.0, False)
    env.reset(seed=0)
    put(env, "microwave")
    put(env, "light switch")
    assert env.step(STILL)[1:3] == (2.0, False)  # two at once


def test_the_observed_position_decides():
    """A door opened to just about 0.3 from the goal: done where the noisy observation says so."""
    env, differ = gymnasium.make(COMPLETE), []
    for seed in range(40):
        env.reset(seed=seed)
        put(env, "microwave", share=0.45 / 0.75)
        observation, reward, *_ = env.step(STILL)
        assert reward == float(abs(observation[22] + 0.75) < 0.3)
        differ.append(reward != float(abs(env.unwrapped.data.qpos[22] + 0.75) < 0.3))
    assert 5 < sum(differ) < 35


def test_the_pedestal_cannot_be_touched():
    """Unlike in Gymnasium-Robotics."""
    for env, touchable in ((gymnasium.make(COMPLETE).unwrapped, 0), (FrankaKitchen().robot_env, 1)):
        model = env.model
        pedestal = model.geom_bodyid == model.body("panda0_link0").parentid
        assert model.geom_type[pedestal].tolist() == [mujoco.mjtGeom.mjGEOM_CYLINDER]
        assert model.geom_contype[pedestal] == model.geom_conaffinity[pedestal] == touchable
