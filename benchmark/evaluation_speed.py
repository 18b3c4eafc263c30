"""How much of the machine an evaluation uses: its time over that of the same steps in bare simulators.

    python benchmark/evaluation_speed.py runs/NAME --dataset-path FILE

A bare simulator is one environment in one process, of which nothing but the steps is timed. One on every core plays
the policy's episodes, before and after each evaluation: a hand that holds something is slower to simulate than one that
waves. A ratio of 1 would mean that starting episodes, the policy and the communication cost nothing. `runs/NAME` is a
finished run of saq_bc.py on one of robomimic's tasks.
"""

import argparse
import sys
import time
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

import d4rl
from d4rl import evaluation

sys.path.insert(0, str(Path(__file__).parents[1]))
import saq_bc  # noqa: E402


def load(folder: str) -> tuple[str, evaluation.Act]:
    """The task and the policy of a run of saq_bc.py."""
    torch.set_num_threads(1)
    run = saq_bc.parse_args(["--evaluate", folder, "--device", "cpu"])
    checkpoint = saq_bc.read_checkpoint(folder, "learner")
    task = d4rl.task(run.env_id)
    sizes = (task.observation_size, task.action_size, run.codebook_size, run.embedding_dim, run.vqvae_hidden_dim)
    vqvae = saq_bc.VQVAE(*sizes, run.codebook_form, run.revive, run.condition_on_obs)
    learner = saq_bc.make_learner(run, task.observation_size)
    vqvae.load_state_dict(checkpoint["stages"]["quantizer"]["model"])
    learner.load_state_dict(checkpoint["stages"]["learner"]["model"])
    return run.env_id, partial(saq_bc.act, run, vqvae, learner, checkpoint)


def bare_speed(folder: str, dataset_path: str, seconds: float) -> float:
    """Steps per second of one simulator in the policy's episodes: the policy and the resets are not counted."""
    env_id, policy = load(folder)
    env, steps, spent, generator = d4rl.make(env_id, dataset_path), 0, 0.0, np.random.default_rng(0)
    for robot in env.unwrapped.robosuite_env.robots:
        robot.__class__ = robot.__class__.__base__  # robosuite as it comes
    while spent < seconds:
        (obs, _), over = env.reset(seed=steps), False
        while not over:
            action = np.clip(policy(obs[None], generator.random(1))[0], env.action_space.low, env.action_space.high)
            start = time.perf_counter()
            obs, _, terminated, truncated, _ = env.step(action)
            spent += time.perf_counter() - start
            over = terminated or truncated
            steps += 1
    return steps / spent


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run")
    parser.add_argument("--dataset-path", required=True)
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()

    env_id, policy = load(args.run)
    steps, cores, ratios = 0, evaluation._cores(), []

    def counted(observations: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        nonlocal steps
        steps += len(observations)
        return policy(observations, uniform)

    d4rl.evaluate(env_id, policy, cores + 1, seed=0, h5path=args.dataset_path)  # starts the processes
    with get_context("spawn").Pool(cores) as pool:

        def bare() -> float:
            return float(np.mean(pool.starmap(bare_speed, [(args.run, args.dataset_path, 10.0)] * cores)))

        before = bare()
        for repeat in range(args.repeats):
            steps, start = 0, time.perf_counter()
            returns = d4rl.evaluate(env_id, counted, args.episodes, seed=repeat, h5path=args.dataset_path)
            seconds, after = time.perf_counter() - start, bare()
            ratios.append(seconds / (steps / (cores * (before + after) / 2)))
            print(
                f"{args.episodes} episodes, {np.mean(returns):.0%} success, {steps} steps, {cores} cores: "
                f"{seconds:.1f} s; bare simulators {before:.0f} and {after:.0f} steps/s: ratio {ratios[-1]:.2f}",
                flush=True,
            )
            before = after
    print(f"median ratio {np.median(ratios):.2f}")


if __name__ == "__main__":
    main()
