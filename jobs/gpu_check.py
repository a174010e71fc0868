"""Is this GPU used well, and does it compute what a CPU computes?

    python jobs/gpu_check.py --minutes 8 --json gpu_check.json

Needs torch and a clone of the project. Parts whose packages are missing are skipped, by name. A second run of
the command goes on where the time of the first was used up.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":  # the clone need not be installed
    sys.path.insert(0, str(Path(__file__).parents[1]))

from ray_wsss.benchmark.gpu_check.parts import PARTS
from ray_wsss.benchmark.gpu_check.run import GpuCheck
from ray_wsss.benchmark.gpu_check.table import judge, to_markdown
from ray_wsss.errors import UserError

WORK = Path(tempfile.gettempdir()) / "ray_wsss_gpu_check"


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Flags of the command line; argparse, since tyro may be missing."""
    parts = "\n".join(f"  {part.name}: {part.what}" for part in PARTS)
    parser = argparse.ArgumentParser(
        prog="gpu_check.py",
        description=__doc__,
        epilog=f"parts:\n{parts}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="device to check")
    parser.add_argument("--minutes", type=float, default=8, help="most minutes to take (default: 8)")
    parser.add_argument("--part", nargs="+", default=[], metavar="NAME", help="run these parts only")
    parser.add_argument("--again", action="store_true", help="run parts again that are finished")
    parser.add_argument("--work", type=Path, default=WORK, help="folder for inputs and results")
    parser.add_argument("--json", type=Path, help="file to which everything found is written")
    parser.add_argument("--markdown", type=Path, help="file to which the table is written as well")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the check; returns 1 if a part or a test failed."""
    flags = parse(argv)
    try:
        _require(flags.device)
        check = GpuCheck(
            device=flags.device,
            minutes=flags.minutes,
            work=flags.work,
            parts=flags.part,
            again=flags.again,
            small=flags.device == "cpu",
        )
        results = check.run(lambda line: print(line, file=sys.stderr, flush=True))
    except UserError as error:
        print(f"gpu_check.py: {error}", file=sys.stderr)
        return 1
    goals = judge(results)
    table = to_markdown(results, goals)
    print(table)
    if flags.json is not None:
        text = json.dumps({"goals": goals, "parts": results}, indent=2)
        flags.json.write_text(text + "\n", encoding="utf-8")
    if flags.markdown is not None:
        flags.markdown.write_text(table, encoding="utf-8")
    tests = results.get("tests", {}).get("figures", {}).get("failed", {})
    for name, reason in tests.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    return int(bool(tests) or any(result["status"] == "failed" for result in results.values()))


def _require(device: str) -> None:
    try:
        import torch
    except ImportError:
        raise UserError("torch is not installed; expected torch 2.7 or newer") from None
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("torch sees no GPU; expected a CUDA device, or --device cpu to try the command")


if __name__ == "__main__":
    sys.exit(main())
