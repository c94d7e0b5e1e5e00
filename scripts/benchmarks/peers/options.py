"""What `bench_policies` and `bench_finetune` are both told."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.parts.tasks import log_final
from datasets.pack import REPOSITORY
from platformdirs import user_cache_path

from benchmarks.peers.findings import METHODS, GridSettings


def grid_parser(description: str | None, shares: tuple[float, ...]) -> argparse.ArgumentParser:
    """With the arguments that both have; `shares` by default."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a few minutes; figures are rough")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--final", action="store_true", help="report on test_report, and log it")
    parser.add_argument("--shared", help="folder that holds data/")
    parser.add_argument("--work", type=Path, default=user_cache_path("rlprune") / "bench_policies")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="networks of the zoo")
    parser.add_argument("--methods", nargs="+", metavar="NAME", choices=METHODS)
    parser.add_argument(
        "--devices", nargs="+", metavar="KEY", help="keys, macs, or ort, openvino, mnn of here"
    )
    parser.add_argument("--shares", nargs="+", type=float, default=shares, metavar="B")
    parser.add_argument("--seeds", type=int, metavar="N", help="three by default")
    parser.add_argument("--images", type=int, metavar="N", help="to choose and profile on, each")
    parser.add_argument("--evaluations", type=int, metavar="N", help="of each search; 400")
    parser.add_argument("--store", metavar="URL", help="with measurements; one of its own in DIR")
    parser.add_argument("--policy", default="learned", help="a name, or an artifact's directory")
    parser.add_argument("--workers", type=int, default=1, help="processes; 1 by default")
    return parser


def seeds_of(options: argparse.Namespace) -> range:
    return range(options.seed, options.seed + (options.seeds or (1 if options.quick else 3)))


def store_of(options: argparse.Namespace) -> str:
    return options.store or f"sqlite:///{options.work / 'latency.db'}"


def settings_of(
    options: argparse.Namespace, *, quick_search: int, round_to: int = 8
) -> GridSettings:
    images = options.images or (200 if options.quick else 1000)
    searched = options.evaluations or (quick_search if options.quick else 400)
    return GridSettings(
        final=options.final,
        profile_count=images,
        objective_count=images,
        report_count=1000 if options.quick else None,
        search_count=searched,
        episode_count=min(searched, 200),
        round_to=round_to,
        policy=options.policy,
        work=options.work,
    )


def log_if_final(options: argparse.Namespace, name: str, what: str = "") -> None:
    """Logs a reading of `test_report` beside the run's figures."""
    if options.final:
        beside = options.json or REPOSITORY / f"{name}.json"
        log_final(beside, f"{what}seed {options.seed} quick {options.quick}")
