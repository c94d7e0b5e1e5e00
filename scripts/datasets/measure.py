"""Measures the zoo's networks on this machine's runtimes, for policies to be trained on.

    scripts/data measure [NAME ...] [--runtimes NAME ...] [--store URL] [--shared DIR]

What was measured is kept in the store, so that the same command goes on where it was stopped; the
keys are printed at the end, as `scripts/data train_default_policy` wants them.
"""

from __future__ import annotations

import argparse
import time
from contextlib import closing

from platformdirs import user_cache_path

from datasets import catalogue
from datasets.pack import CifarPack, shared_data
from datasets.running import stoppable
from rlprune.latency.device import local_device_key
from rlprune.planning.local import device_task
from rlprune.runtime import RUNTIMES, get_runtime
from rlprune.schemes import space_with
from rlprune.schemes.channels import keep_levels
from rlprune.sensitivity.energy import energy_profiles
from rlprune.store import open_store


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("networks", nargs="*", metavar="NAME", help="all of them if left out")
    parser.add_argument("--runtimes", nargs="+", choices=list(RUNTIMES), default=list(RUNTIMES))
    store_path = user_cache_path("rlprune", ensure_exists=True) / "zoo_latency.sqlite"
    parser.add_argument("--store", default=f"sqlite:///{store_path}")
    parser.add_argument("--shared")
    options = parser.parse_args()
    with stoppable(), closing(open_store(options.store)) as store:
        pack = CifarPack(shared_data(options.shared))
        runtimes = [get_runtime(name) for name in options.runtimes]
        for name in options.networks or catalogue.names():
            trace = catalogue.traced(catalogue.load(name, pack=pack))
            space = space_with(trace.graph, *keep_levels(trace.graph))
            profiles = energy_profiles(trace, space)
            for runtime in runtimes:
                device = local_device_key(runtime)
                task = device_task(trace, space, profiles, store, device, runtime)
                now = time.strftime("%H:%M")
                print(f"{now} {name} on {runtime.name}: {task.base_ms:.3f} ms", flush=True)
        keys = " ".join(f"--device {local_device_key(runtime)}" for runtime in runtimes)
        print(f"--store {options.store} {keys}")


if __name__ == "__main__":
    main()
