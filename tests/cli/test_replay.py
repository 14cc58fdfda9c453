"""`mixq replay`: tables and documents, ranges of memory, quotas saved and used, and what makes no sense."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mixq.cli.replay import parse_budgets
from mixq.errors import UsageError
from mixq.experts.quota import Quotas
from mixq.experts.routing import Trace
from mixq.plan.presets import COMPUTERS
from mixq.plan.recording import Recording
from tests.cli.conftest import RunCli
from tests.plan.recordings import recording_of

HARDWARE = ("--hardware", "rtx-3060-12gb")


@pytest.fixture(scope="session")
def recording(quantized: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import mixq
    from mixq.measure.prompt_file import built_in
    from mixq.measure.recorder import Recorder

    recorder = Recorder(mixq.load(quantized, device="cpu", context=256, threads=1))
    prompts = built_in()[:2]
    for prompt, task in zip(
        prompts, recorder.tasks(prompts, max_tokens=30, temperature=0, ignore_eos=True), strict=True
    ):
        recorder.run(prompt.name, task)
    found = recorder.recording()
    assert found is not None
    path = tmp_path_factory.mktemp("recording") / "run.mqt"
    found.write(path)
    return path


@pytest.fixture(scope="session")
def trace(recording: Path) -> Path:
    """A recording without the model's sizes."""
    path = recording.with_name("trace.mqt")
    recording_of(Recording.read(recording).routing()).write(path)
    return path


@pytest.mark.parametrize(
    ("text", "gigabytes"),
    [
        ("8GB", [8]),
        ("8GB, 12GB,8GB", [8, 12]),
        ("4..24GB", [4, 8, 12, 16, 20, 24]),
        ("4GB..24GB", [4, 8, 12, 16, 20, 24]),
        ("4..24GB:10GB", [4, 14, 24]),
        ("4..24GB:6GB,100GB", [4, 10, 16, 22, 100]),
        ("500MB..1GB:250MB", [0.5, 0.75, 1]),
    ],
)
def test_ranges_of_memory(text: str, gigabytes: list[float]) -> None:
    assert parse_budgets(text) == [int(value * 1e9) for value in gigabytes]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not a size"),
        ("eight", "not a size"),
        ("0", "above 0"),
        ("24..4GB", "ends below its start"),
        ("4..4GB", "ends below its start"),
        ("4..", "not a size"),
        ("4..24GB:0GB", "step"),
        ("4..24GB:30GB", "step"),
        ("4..24GB:1MB", "the step 1MB"),
        ("4..24GB:", "not a size"),
        (",".join(f"{i}GB" for i in range(1, 80)), "1 to 64 sizes"),
    ],
)
def test_ranges_that_make_no_sense(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_budgets(text)


def test_a_table_of_every_combination(cli: RunCli, recording: Path) -> None:
    outcome = cli("replay", recording, *HARDWARE)
    assert outcome.code == 0, outcome.err
    for words in ("tokens/s", "to best", "belady", "fitted", "layers, 2 of 4 experts", "hits of 58 tokens"):
        assert words in outcome.out, words
    assert outcome.out.count("belady") == 12  # six budgets, two ways to share
    assert max(map(len, outcome.out.splitlines())) <= 100


def test_one_document(cli: RunCli, recording: Path) -> None:
    outcome = cli("replay", recording, *HARDWARE, "--policy", "lru,belady", "--miss", "auto,fetch", "--json")
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out)
    assert len(document["combinations"]) == 6 * 2 * 2 * 2
    assert {row["miss"] for row in document["combinations"]} == {"auto", "fetch"}
    assert len(document["hit_rate_by_slots"]["lru"]) == document["layers"]
    assert [curve[0] for curve in document["hit_rate_by_slots"]["lru"]] == [0.0] * document["layers"]
    assert document["best"]["policy"] == "lru"
    for row in document["combinations"]:
        assert 0 <= row["hit_rate"] <= 1
        assert row["tokens_per_second"] > 0
        assert len(row["hits_by_layer"]) == len(row["slots_by_layer"]) == document["layers"]
        assert sum(row["slots_by_layer"]) == row["slots"]


def test_a_recording_without_sizes_needs_a_model(cli: RunCli, trace: Path, recording: Path, quantized: Path) -> None:
    outcome = cli("replay", trace, *HARDWARE)
    assert outcome.code == 2
    assert "--model" in outcome.err
    old = json.loads(cli("replay", trace, *HARDWARE, "--model", quantized, "--json", "--excerpt", "32").out)
    new = json.loads(cli("replay", recording, *HARDWARE, "--model", quantized, "--json", "--excerpt", "32").out)
    assert old["hit_rate_by_slots"] == new["hit_rate_by_slots"]
    assert old["excerpt_tokens"] == 32


def test_the_sizes_recorded_are_the_models_own(cli: RunCli, recording: Path, quantized: Path) -> None:
    own = json.loads(cli("replay", recording, *HARDWARE, "--vram", "1GB", "--json").out)
    named = json.loads(cli("replay", recording, *HARDWARE, "--vram", "1GB", "--json", "--model", quantized).out)
    assert own["combinations"] == named["combinations"]


def test_the_best_quotas_are_saved_and_run(cli: RunCli, recording: Path, quantized: Path, tmp_path: Path) -> None:
    path = tmp_path / "best.json"
    vram = json.loads(cli("replay", recording, *HARDWARE, "--json").out)["combinations"][16]["vram"]
    outcome = cli("replay", recording, *HARDWARE, "--vram", vram, "--policy", "lru", "--save-quota", path)
    assert outcome.code == 0, outcome.err
    assert f"mixq chat --quota {path}" in outcome.out.replace("\n", "")
    quotas = Quotas.read(path)
    document = json.loads(cli("replay", recording, *HARDWARE, "--vram", vram, "--policy", "lru", "--json").out)
    assert quotas.quotas == tuple(document["best"]["slots_by_layer"])
    assert quotas.popular is not None
    assert "run.mqt" in quotas.source
    ran = ("--device", "sim", "--context", "64", "--threads", "1")
    for command in (
        ("run", quantized, "-p", "Hello", "--max-tokens", "3"),
        ("bench", quantized, "-p", "0", "-n", "3", "-r", "1"),
    ):
        outcome = cli(*command, *ran, "--quota", path, "--vram", "100MB", "--json")
        assert outcome.code == 0, outcome.err
    Quotas(32, 8, (1,) * 32).write(path)
    for command in (("run", quantized, "-p", "Hello"), ("bench", quantized), ("chat", quantized), ("serve", quantized)):
        outcome = cli(*command, *ran, "--quota", path)
        assert outcome.code == 2, command
        assert "best.json are for a model of 32 layers" in outcome.err


def test_quotas_of_several_budgets_or_another_depth_are_not_saved(cli: RunCli, recording: Path, tmp_path: Path) -> None:
    path = tmp_path / "q.json"
    for arguments, said in (
        ((), "needs a single size"),
        (("--vram", "8GB,12GB"), "needs a single size"),
    ):
        outcome = cli("replay", recording, *HARDWARE, *arguments, "--save-quota", path)
        assert (outcome.code, said in outcome.err) == (2, True), outcome.err
    assert not path.exists()


def test_a_computer_that_other_programs_disturbed_is_marked(cli: RunCli, recording: Path, tmp_path: Path) -> None:
    for load in (0.34, 0.2):
        replace(COMPUTERS["rtx-3060-12gb"], load=load).write(tmp_path / "loud.json")
        said = cli("replay", recording, "--hardware", tmp_path / "loud.json", "--vram", "1GB").err
        assert ("measured while other programs used 34% of the processor" in said) == (load == 0.34)


def test_a_hardware_file(cli: RunCli, recording: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    COMPUTERS["laptop-8gb"].write(path)
    file, preset = (
        json.loads(cli("replay", recording, "--hardware", name, "--vram", "1GB", "--json").out)
        for name in (path, "laptop-8gb")
    )
    assert file["combinations"] == preset["combinations"]


def test_what_makes_no_sense(cli: RunCli, recording: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text('{"format": "mixq-hardware", "version": 1}')
    (tmp_path / "bad.mqt").write_bytes(recording.read_bytes()[:-50])
    recording_of(Trace(1, 3, 1, [[(0,)]])).write(tmp_path / "three.mqt")
    for arguments, code, said in (
        ((tmp_path / "none.mqt",), 3, "does not exist"),
        ((tmp_path / "bad.mqt",), 3, "its end is missing"),
        ((tmp_path / "bad.json",), 3, "not a recording of mixq"),
        ((recording, "--policy", "lru,mru"), 2, "Did you mean 'lru'"),
        ((recording, "--policy", "random"), 2, "cannot be simulated"),
        ((recording, "--quota", "fit"), 2, "Did you mean 'fitted'"),
        ((recording, "--miss", "gpu"), 2, "--miss 'gpu'"),
        ((recording, "--vram", "big"), 2, "not a size"),
        ((recording, "--vram", "1MB"), 4, "before the first expert"),
        ((recording, "--context", "0"), 2, "--context is 0"),
        ((recording, "--excerpt", "0"), 2, "--excerpt is 0"),
        ((recording, "--hardware", "rtx-3060"), 2, "Did you mean 'rtx-3060-12gb'"),
        ((recording, "--hardware", "cpu-laptop"), 2, "has no GPU, so there is no expert cache"),
        ((recording, "--hardware", tmp_path / "bad.json"), 3, "name is missing; it must be a string"),
        ((recording, "--model", "mixtral-8x7b"), 2, "has 8 and uses 2"),
        ((recording, "--model", "mistral-7b"), 2, "has no experts"),
        ((recording, "--model", tmp_path / "no"), 3, "neither a folder"),
        ((tmp_path / "three.mqt", "--model", "mixtral-8x7b"), 2, "3 experts per layer"),
    ):
        more = () if "--hardware" in arguments else HARDWARE
        outcome = cli("replay", *arguments, *more)
        assert (outcome.code, said in outcome.err) == (code, True), (arguments, outcome.err)


def test_help_has_an_example(cli: RunCli) -> None:
    for command in ("trace", "replay"):
        assert f"Example: mixq {command}" in " ".join(cli(command, "--help").out.split())
