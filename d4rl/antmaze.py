"""D4RL's AntMaze, rebuilt on Gymnasium-Robotics' ant and mazes.

Play and diverse are one environment: the two names tell datasets apart.
"""

import contextlib
import io

import gymnasium
import mujoco
import numpy as np

with contextlib.redirect_stderr(io.StringIO()):  # a notice about Adroit
    from gymnasium_robotics.envs.maze import ant_maze_v5
    from gymnasium_robotics.envs.maze.maps import LARGE_MAZE, MEDIUM_MAZE, U_MAZE

MAZES = {"umaze": (U_MAZE, (3, 1)), "medium": (MEDIUM_MAZE, (6, 6)), "large": (LARGE_MAZE, (7, 9))}  # walls, goal cell
CELL = 4.0  # m


class AntMazeEnv(gymnasium.Env):
    """Walk an ant to the goal of a maze: reward 1 within 0.5 m of it, which ends the episode, else 0.

    Observation (29,): the ant's generalised positions (15: x, y, z in m, a unit quaternion, 8 joint angles in rad) and
    velocities (14). Cell (i, j) is centred at x = 4 (j - 1), y = 4 (i - 1). Action (8,): torques, [-1, 1] * 30 Nm, held
    for 0.1 s. Start: cell (1, 1), every position + U(-0.1, 0.1), every velocity 0.1 * N(0, 1). The goal is drawn anew
    for every episode: the middle of the goal cell + U(0, 1) + U(0, 0.5) in x and in y. A fall ends nothing.
    """

    metadata = {"render_modes": ["human", "rgb_array", "depth_array"], "render_fps": 10}

    def __init__(self, maze: str, render_mode: str | None = None):
        walls, goal_cell = MAZES[maze]
        rows, columns = np.shape(walls)
        # Gymnasium-Robotics puts the origin at the centre of the map and lets y fall from row to row. Upside down, and
        # with free cells added on two sides until cell (1, 1) is in the middle, the map has D4RL's coordinates.
        maze_map = np.pad(walls[::-1], [(0, rows - 3), (columns - 3, 0)]).tolist()
        centre = CELL / 2 * np.array([columns - 3, rows - 3])
        self.maze = ant_maze_v5.AntMazeEnv(
            maze_map=maze_map,
            render_mode=render_mode,
            include_cfrc_ext_in_observation=False,
            camera_id=-1,  # not the one that follows the ant: the whole maze, from above
            default_camera_config={
                "lookat": np.append(centre, 0),
                "distance": 1.25 * CELL * max(rows, columns),
                "elevation": -90.0,
            },
        )
        self.ant = self.maze.ant_env
        # What D4RL's ant differs in: the time step (s), the torque at action 1 (Nm), the contacts' impedance.
        self.ant.model.opt.timestep = 0.02
        self.ant.model.actuator_gear[:, 0] = 30
        self.ant.model.geom_solimp[:, :3] = 0.8, 0.8, 0.01
        self.goal_centre = CELL * (np.array(goal_cell[::-1]) - 1)
        self.observation_space = self.ant.observation_space
        self.action_space = self.ant.action_space
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.goal = self.goal_centre + self.np_random.uniform(0, 1, size=2) + self.np_random.uniform(0, 0.5, size=2)
        self.maze.goal = self.goal
        self.maze.update_target_site_pos()  # the goal in pictures
        self.ant.reset()
        position = self.ant.init_qpos + self.np_random.uniform(-0.1, 0.1, size=15)
        mujoco.mj_normalizeQuat(self.ant.model, position)  # D4RL's MuJoCo did it unasked
        self.ant.set_state(position, 0.1 * self.np_random.standard_normal(14))
        return self.ant.state_vector(), {}

    def step(self, action):
        observation, _, _, _, _ = self.ant.step(action)
        success = bool(np.linalg.norm(observation[:2] - self.goal) <= 0.5)
        return observation, float(success), success, False, {"success": success}

    def render(self):
        return self.maze.render()

    def close(self):
        self.maze.close()
