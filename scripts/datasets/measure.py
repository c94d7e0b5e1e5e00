"""Measures the zoo's networks on this machine's runtimes, for policies to be trained on.

    scripts/data measure [NAME ...] [--runtimes NAME ...] [--store URL]

Three runtimes are three device keys that are really there. What was measured is kept in the store,
so that the same command goes on where it was stopped; the keys are printed at the end, as
`scripts/data train_default_policy --store URL --device KEY` wants them.
"""

from __future__ import annotations

import argparse
import os
import time
from contextlib import closing

from platformdirs import user_cache_path

from datasets import catalogue
from datasets.pack import CifarPack, shared_data
from datasets.running import stoppable
from rlprune.latency.device import local_device_key
from rlprune.planning.local import device_task
from rlprune.profile.energy import energy_profiles
from rlprune.profile.types import keep_levels
from rlprune.runtime import RUNTIMES, get_runtime
from rlprune.store import open_store


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("networks", nargs="*", metavar="NAME", help="all of them if left out")
    parser.add_argument("--runtimes", nargs="+", choices=list(RUNTIMES), default=list(RUNTIMES))
    parser.add_argument(
        "--store", default=f"sqlite:///{user_cache_path('rlprune') / 'zoo_latency.sqlite'}"
    )
    parser.add_argument("--shared")
    options = parser.parse_args()
    with stoppable():
        measure(options)


def measure(options: argparse.Namespace) -> None:
    pack = CifarPack(shared_data(options.shared))
    user_cache_path("rlprune", ensure_exists=True)
    keys = {}
    with closing(open_store(options.store)) as store:
        for name in options.networks or catalogue.names():
            trace = catalogue.traced(catalogue.load(name, pack=pack))
            profiles = energy_profiles(trace, *keep_levels(trace.graph))
            for runtime_name in options.runtimes:
                began = time.monotonic()
                runtime = get_runtime(runtime_name)
                keys[runtime_name] = device = local_device_key(runtime)
                task = device_task(trace, profiles, store, device, runtime)
                print(
                    f"{time.strftime('%H:%M')} {name} on {runtime_name}: {task.base_ms:.3f} ms, "
                    f"interval {task.tables.base_interval_ratio[1] - 1:+.1%}, "
                    f"{time.monotonic() - began:.0f} s, load {os.getloadavg()[0]:.1f}",
                    flush=True,
                )
    print(f"--store {options.store} " + " ".join(f"--device {key}" for key in keys.values()))


if __name__ == "__main__":
    main()
