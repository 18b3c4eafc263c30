"""D4RL's kitchen, rebuilt on Gymnasium-Robotics: its robot and its model, with D4RL's noise, goals and rewards.

Datasets are rewarded in another way: there a row's reward counts all tasks that are done in the row's own observation,
at every step anew, and `terminals` marks the last row of a demonstration, whether its tasks are done or not.
"""

import contextlib
import io

import gymnasium
import mujoco
import numpy as np

with contextlib.redirect_stderr(io.StringIO()):  # a notice about Adroit
    from gymnasium_robotics.envs.franka_kitchen.franka_env import FrankaRobot
    from gymnasium_robotics.envs.franka_kitchen.kitchen_env import OBS_ELEMENT_GOALS, OBS_ELEMENT_INDICES

# Positions of the joints at the start of every episode (rad, m).
ARM = [0.148388023, -1.76848573, 1.84390296, -2.4768576, 0.260252026, 0.712533105, 1.59515394]
FINGERS = [0.0479267505, 0.0371350919]
BURNERS = [-2.6627985e-4, -5.18043486e-5, 3.1287722e-5, -4.51199853e-5]  # knob and burner, four times
BURNERS += [-3.90842156e-6, -4.22629655e-5, 6.28065475e-5, 4.04984708e-5]
LIGHT = [4.62730939e-4, -2.26906415e-4]  # switch and lamp
DOORS = [-4.65501369e-4, -6.44129196e-3, -1.77048263e-3, 1.08009684e-3]  # slide, left and right cabinet, microwave
KETTLE = [-0.26939744, 0.350383255, 1.61944683, 1.00618764, 4.0639512e-3, -6.62095997e-3, -2.68278933e-4]
START = np.array(ARM + FINGERS + BURNERS + LIGHT + DOORS + KETTLE)  # (30,)

# Observed positions are off by U(-1, 1) times this. D4RL made its table for other objects: it changes in mid-kettle.
NOISE = 0.1 * np.repeat([0.1, 0.005, 0.0005, 0.005, 0.1, 0.005, 0.1, 0.005], [9, 2, 6, 3, 3, 3, 3, 1])  # (30,)


class KitchenEnv(FrankaRobot):
    """Do the tasks in any order: reward 1 once for each; the episode terminates when all are done.

    Observation (60,): noisy positions of the robot's (9) and the objects' joints (21), in the order of `START`, and
    their goal (30), zero except for the joints of `tasks`. Action (9,): velocities of the robot's joints in [-1, 1], in
    units of 2 rad/s (fingers 2 m/s), held for 0.08 s. A task is done when its joints are OBSERVED within 0.3 of their
    goal (Euclidean). `info["completed"]` lists the tasks done so far, `info["success"]` is true when none is left.
    """

    def __init__(self, tasks: tuple[str, ...], render_mode: str | None = None):
        model_path = "../assets/kitchen_franka/kitchen_assets/kitchen_env_model.xml"
        super().__init__(model_path=model_path, render_mode=render_mode)
        self.observation_space = gymnasium.spaces.Box(-8.0, 8.0, (60,), np.float64)
        self.init_qpos, self.init_qvel = START.copy(), np.zeros(self.model.nv)
        # MuJoCo used to normalise a quaternion as soon as it was set; now it leaves that to the first step.
        mujoco.mj_normalizeQuat(self.model, self.init_qpos)
        # The arm runs into its pedestal in Gymnasium-Robotics' model only.
        pedestal = self.model.body_geomadr[self.model.body("panda0_link0").parentid]
        self.model.geom_contype[pedestal] = self.model.geom_conaffinity[pedestal] = 0
        self.tasks, self.completed = tasks, []
        self.goal = np.zeros(30)
        for task in tasks:
            self.goal[OBS_ELEMENT_INDICES[task]] = OBS_ELEMENT_GOALS[task]

    def _get_obs(self):
        positions = self.data.qpos + NOISE * self.np_random.uniform(-1, 1, size=30)
        self._last_robot_qpos = positions[:9]  # as in D4RL, FrankaRobot steers from where the robot was observed
        return np.concatenate([positions, self.goal])

    def reset_model(self):
        self.completed = []
        return super().reset_model()

    def step(self, action):
        observation, *_ = super().step(action)
        error = observation[:30] - self.goal
        done = [task for task in self.tasks if np.linalg.norm(error[OBS_ELEMENT_INDICES[task]]) < 0.3]
        new = [task for task in done if task not in self.completed]
        self.completed = self.completed + new
        success = len(self.completed) == len(self.tasks)
        return observation, float(len(new)), success, False, {"success": success, "completed": self.completed}
