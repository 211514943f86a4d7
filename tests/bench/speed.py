"""Speed, as ratios of two things measured in turn: `python tests/bench/speed.py`. Prints a line a figure.

Absolute times depend on the machine and on who else uses it; ratios of neighbours in time do not.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
PLAIN = "DeepFM_movielens100k"


def report(name: str, value: float, unit: str, goal: str) -> None:
    print(f"{name:70}{value:8.3f} {unit:3} (goal: {goal})", flush=True)


def bench_import() -> None:
    heavy = ("ray", "transformers", "torch")
    code = f"import sys, fuxictr_llm; sys.exit(sum(name in sys.modules for name in {heavy}))"
    found = subprocess.run([sys.executable, "-c", code], check=False, timeout=300).returncode
    report("heavy libraries imported by `import fuxictr_llm`", found, "", "0")


def run_once(folder: str, loader: str) -> tuple[float, float]:
    """Seconds of a whole run, and seconds until its first epoch starts."""
    # Fixed epochs: FuxiCTR's loader shuffles without a seed, so early stopping would compare unequal work.
    settings = [f"data_loader={loader}", "epochs=10", "early_stop_patience=10"]
    command = [sys.executable, str(ROOT / "run_expid.py"), "--expid", PLAIN]
    command += [arg for setting in settings for arg in ("--set", setting)]
    start = time.perf_counter()
    first = None
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        for line in process.stderr:
            if "Epoch=1 start" in line:
                first = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return time.perf_counter() - start, first


def bench_whole_run(rounds: int) -> None:
    """Our loader against FuxiCTR's own, the data being built."""
    with tempfile.TemporaryDirectory() as folder:
        prepare = [sys.executable, "-m", "fuxictr_llm", "prepare", "--expid", PLAIN]
        subprocess.run(prepare, cwd=folder, check=True, capture_output=True, timeout=300)
        ratios, starts = [], []
        for _ in range(rounds):
            memory, first = run_once(folder, "memory")
            ray, _ = run_once(folder, "ray")
            ratios.append(memory / ray)
            starts.append(first)
            print(f"  in memory {memory:.1f} s, Ray {ray:.1f} s", flush=True)
    report(f"{PLAIN}: in-memory loader / data_loader: ray", statistics.median(ratios), "", "at most 0.5")
    report(f"{PLAIN}: start to first batch", statistics.median(starts), "s", "under 12")


def bench_steps(rounds: int) -> None:
    import torch
    from measuring import criteo_like, in_turn, our_step

    from fuxictr_llm.host.batches import synthetic_batch
    from fuxictr_llm.model_zoo.LLaCTR.vector_file import write_field_vectors
    from fuxictr_llm.registry import find_method
    from fuxictr_llm.serving.load import ServedModel
    from support import Idle

    plain, idle = criteo_like("DeepFM"), criteo_like("DeepFM", Idle)
    batch = synthetic_batch(plain.feature_map, rows=4096)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vectors.safetensors"
        write_field_vectors(path, torch.randn(39, 576), [f"f{index}" for index in range(39)])
        llactr = criteo_like("DeepFM", find_method("LLaCTR").model_cls, field_vectors=str(path))
    folded = llactr.enhancement.fold(
        llactr.enhancement.config, llactr.enhancement.anatomy, llactr.enhancement.state_dict()
    )
    served = criteo_like("DeepFM", type(folded))
    served.enhancement.load_state_dict(folded.state_dict())
    step = {model: partial(our_step(model), batch) for model in (plain, idle, llactr)}
    name = "training step, taps attached and idle / plain"
    report(name, in_turn(step[idle], step[plain], rounds), "", "at most 1.03")
    report("training step, LLaCTR / plain", in_turn(step[llactr], step[plain], rounds), "", "at most 1.12, aim 1.08")

    @torch.inference_mode()
    def predict(model) -> None:
        model.forward(batch)

    exported = {model: ServedModel(model, {}) for model in (served, criteo_like("DeepFM"))}
    for model in (plain, llactr):
        model.eval()
    ratio = in_turn(lambda: predict(llactr), lambda: predict(plain), 3 * rounds)
    report("inference, LLaCTR / plain", ratio, "", "at most 1.08, aim 1.05")
    of_llactr, of_plain = (partial(one._forward, batch) for one in exported.values())
    ratio = in_turn(of_llactr, lambda: predict(plain), 3 * rounds)
    report("inference, exported LLaCTR / plain", ratio, "", "at most 1.08, aim 1.05")
    report("inference, exported LLaCTR / exported plain", in_turn(of_llactr, of_plain, 3 * rounds), "", "-")


def bench_ssft(rounds: int) -> None:
    from bench_ssft import compare_steps, seconds_to_encode
    from measuring import in_turn

    for prompts, goal in ((16, "at least 3"), (64, "at least 3")):
        name = f"SSFT on {prompts} prompts a step: prompts per second, ours / published"
        report(name, compare_steps(in_turn, rounds, prompts), "", goal)
    report("vectors of 40 field descriptions", seconds_to_encode(), "s", "under 10")


def bench_elec(rounds: int, passes: int) -> None:
    from bench_elec import compare_encoding, compare_with_plain, heavy_libraries_of_export

    found = compare_with_plain(rounds)
    report("inference, ELEC's vanilla network / plain", found.inference, "", "1.00 within noise")
    report("parameters, ELEC's vanilla network - plain", found.more_parameters, "", "0")
    report("transformers and peft imported to serve an exported ELEC", heavy_libraries_of_export(), "", "0")
    report("training step, distilled from a gain network / plain", found.distillation, "", "at most 1.8, aim 1.5")
    report("looking up vectors of 4096 rows / plain training step", found.lookup, "", "at most 0.02")
    gains = compare_encoding(passes)
    name = f"encoding {gains.texts} texts of {gains.tokens:.0f} tokens, float32: texts per second, ours / loop"
    report(name, gains.equal_dtype, "", "at least 1.8")
    report("  of it, skipping the LM head", gains.head, "", "-")
    report("  of it, batches of like length", gains.batching, "", "-")
    report(f"  bfloat16 / float32 on {gains.processor} (auto: {gains.dtype})", gains.bfloat16, "", "-")
    report("  MovieLens-100K: texts of all rows / distinct texts", gains.deduplication, "", "-")
    report("  all that is in use, together", gains.together, "", "-")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30, help="pairs of training steps")
    parser.add_argument("--tunings", type=int, default=4, help="pairs of SSFT steps")
    parser.add_argument("--passes", type=int, default=3, help="times that texts are encoded in each way")
    parser.add_argument("--runs", type=int, default=3, help="pairs of whole runs")
    args = parser.parse_args()
    bench_import()
    bench_steps(args.rounds)
    bench_elec(args.rounds, args.passes)
    bench_ssft(args.tunings)
    bench_whole_run(args.runs)


if __name__ == "__main__":
    main()
