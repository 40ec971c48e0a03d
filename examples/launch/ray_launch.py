"""Trains as one with a process on each of several nodes of a Ray cluster, or tries to again.

    python examples/launch/ray_launch.py 4 --config=configs/cifar10.py --workdir=/shared/runs/cifar10

Every node has this project at the same path.
"""

import pathlib
import socket
import subprocess
import sys

import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

ROOT = pathlib.Path(__file__).resolve().parents[2]
AGAIN = {75, 134, -6, 139, -11}  # told to stop, and saved; another process was lost


class Node:
    def find_address(self) -> str:
        with socket.socket() as free:
            free.bind(("", 0))
            return f"{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"

    def train(self, *arguments: str) -> int:
        return subprocess.run([sys.executable, "main.py", *arguments], cwd=ROOT).returncode


def main(num: int, *arguments: str) -> int:
    resources = {"CPU": 1, "GPU": 1} if ray.cluster_resources().get("GPU") else {"CPU": 1}
    group = placement_group([resources] * num, strategy="STRICT_SPREAD")
    ray.get(group.ready())
    places = [PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index) for index in range(num)]
    actor = ray.remote(**{f"num_{name.lower()}s": number for name, number in resources.items()})(Node)
    nodes = [actor.options(scheduling_strategy=place).remote() for place in places]
    while True:
        shared = [f"--coordinator={ray.get(nodes[0].find_address.remote())}", f"--num_processes={num}", *arguments]
        statuses = ray.get([node.train.remote(*shared, f"--process_id={index}") for index, node in enumerate(nodes)])
        if not AGAIN & set(statuses):
            return max(statuses)


if __name__ == "__main__":
    ray.init()
    sys.exit(main(int(sys.argv[1]), *sys.argv[2:]))
