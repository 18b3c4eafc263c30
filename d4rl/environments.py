"""D4RL's environments, rebuilt on Gymnasium-Robotics: what differs between the two, and nothing else.

The locomotion tasks are Gymnasium's v4 environments as they are. Adroit differs in the sign of one reward term and in
pen's termination, maze2d in its coordinates, start, goal and reward.
"""

import contextlib
import io

import gymnasium
import numpy as np

with contextlib.redirect_stderr(io.StringIO()):  # a notice for users of its own Adroit ids, which are mended below
    from gymnasium_robotics.envs.adroit_hand.adroit_door import AdroitHandDoorEnv
    from gymnasium_robotics.envs.adroit_hand.adroit_hammer import AdroitHandHammerEnv
    from gymnasium_robotics.envs.adroit_hand.adroit_pen import AdroitHandPenEnv
    from gymnasium_robotics.envs.adroit_hand.adroit_relocate import AdroitHandRelocateEnv
    from gymnasium_robotics.envs.maze.maps import LARGE_MAZE, MEDIUM_MAZE, U_MAZE
    from gymnasium_robotics.envs.maze.point_maze import PointMazeEnv


# --- Adroit ---
# D4RL charges 0.1 * distance between palm and object, Gymnasium-Robotics 1.2.1 to 1.4.2 pays it: hence - 0.2 * distance
# here.
class DoorEnv(AdroitHandDoorEnv):
    """Open the door: D4RL's reward."""

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        palm_to_handle = observation[35:38]
        return observation, reward - 0.2 * np.linalg.norm(palm_to_handle), terminated, truncated, info


class HammerEnv(AdroitHandHammerEnv):
    """Drive in the nail: D4RL's reward."""

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        palm_to_hammer = observation[33:36] - observation[36:39]
        return observation, reward - 0.2 * np.linalg.norm(palm_to_hammer), terminated, truncated, info


class RelocateEnv(AdroitHandRelocateEnv):
    """Carry the ball to the target: D4RL's reward."""

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        palm_to_ball = observation[30:33]
        return observation, reward - 0.2 * np.linalg.norm(palm_to_ball), terminated, truncated, info


class PenEnv(AdroitHandPenEnv):
    """Turn the pen: as in D4RL the episode ends when it drops."""

    def step(self, action):
        observation, reward, _, truncated, info = super().step(action)
        dropped = bool(observation[26] < 0.075)  # height of the pen in m
        return observation, reward, dropped, truncated, info


# --- maze2d ---
MAZES = {"umaze": (U_MAZE, (1, 1)), "medium": (MEDIUM_MAZE, (6, 6)), "large": (LARGE_MAZE, (7, 9))}  # walls, goal


class Maze2dEnv(gymnasium.Env):
    """Push a ball to the goal of a maze and keep it there: reward 1 per step within 0.5 of the goal.

    Observation (4,): row, column (cells) and their velocities (cells/s); cell (i, j) is centred at (i - 0.2, j - 0.2).
    Action (2,): force along rows and columns, in [-1, 1]. Start: `start_cell`, or any free cell, + U(-0.1, 0.1), with a
    velocity from 0.1 * N(0, 1). The episode never terminates; `info["success"]` is true within 0.5 of the goal.
    """

    metadata = PointMazeEnv.metadata

    def __init__(self, maze: str, start_cell: tuple[int, int] | None = None, render_mode: str | None = None):
        walls, goal = MAZES[maze]
        self.goal = np.array(goal, float)
        self.centre = np.array(np.shape(walls)) / 2 - 0.7  # row and column of the middle of the maze
        point_maze = PointMazeEnv(maze_map=walls, render_mode=render_mode)
        point_maze.goal = self._position(self.goal)
        point_maze.update_target_site_pos()  # the goal in pictures
        self.ball = point_maze.point_env
        self.ball.mujoco_renderer.default_cam_config = {
            "distance": 1.25 * max(np.shape(walls)),
            "elevation": -90.0,
            "lookat": np.zeros(3),
        }
        self.render_mode = render_mode
        self.start_cells = np.argwhere(np.array(walls) == 0) if start_cell is None else np.array([start_cell])
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float64)
        self.action_space = self.ball.action_space

    # Gymnasium-Robotics puts the origin at the centre of the maze, x along columns and y against rows.
    def _position(self, cell: np.ndarray) -> np.ndarray:
        row, column = cell - self.centre
        return np.array([column, -row])

    def _observation(self, state: np.ndarray) -> np.ndarray:
        x, y, x_velocity, y_velocity = state
        row, column = self.centre
        return np.array([row - y, x + column, -y_velocity, x_velocity])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        position = self.np_random.choice(self.start_cells) + self.np_random.uniform(-0.1, 0.1, size=2)
        row_velocity, column_velocity = 0.1 * self.np_random.standard_normal(2)
        self.ball.reset()
        self.ball.set_state(self._position(position), np.array([column_velocity, -row_velocity]))
        return self._observation(self.ball.state_vector()), {}

    def step(self, action):
        row_force, column_force = action
        state, _, _, _, _ = self.ball.step(np.array([column_force, -row_force]))
        observation = self._observation(state)
        success = bool(np.linalg.norm(observation[:2] - self.goal) <= 0.5)
        return observation, float(success), False, False, {"success": success}

    def render(self):
        return self.ball.render()

    def close(self):
        self.ball.close()
