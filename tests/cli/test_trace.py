"""`mixq trace`: what is recorded is what the model did; prompts of every kind; what is refused before anything runs."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

import mixq
from mixq.measure.experiments import route
from mixq.measure.prompt_file import built_in
from mixq.measure.recorder import Recorder
from mixq.plan.recording import NOTHING, Recording
from tests.checkpoints import write_tiny_mistral
from tests.cli.conftest import RunCli

SHORT = ("--max-tokens", "5", "--temperature", "0", "--context", "256", "--threads", "1")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("What is this?\n\n  Et cela ?  \n")
    return path


def test_a_recording_has_what_the_model_did(cli: RunCli, quantized: Path, prompts: Path, tmp_path: Path) -> None:
    outcome = cli("trace", quantized, "--prompts", prompts, "-o", tmp_path / "run.mqt", *SHORT, "--device", "cpu")
    assert outcome.code == 0, outcome.err
    shown = "".join(line.strip() for line in outcome.out.splitlines())  # a long path is wrapped
    for words in ("2, ", "predicted", "run.mqt"):
        assert words in shown
    assert "recording: 100 %" in outcome.err
    recording = Recording.read(tmp_path / "run.mqt")
    assert [p.name for p in recording.facts.prompts] == ["What is this?", "Et cela ?"]
    assert (recording.facts.device, recording.facts.model) == ("cpu", quantized.name)
    model = mixq.load(quantized, device="cpu", context=256, threads=1)
    config = model.config
    for number, text in enumerate(("What is this?", "Et cela ?")):
        mine = recording.prompt == number
        ids = model.encode_chat([{"role": "user", "content": text}])
        done = model.chat([{"role": "user", "content": text}], temperature=0, max_tokens=5, stream=False)
        fed = [*ids, *done.token_ids[:-1]]
        assert recording.tokens[mine].tolist() == fed
        assert recording.is_prompt[mine].tolist() == [i < len(ids) for i in range(len(fed))]
        # One token after the other: the same hidden states, the same choices.
        chosen, weights = route(model, fed, weights=True)
        assert (recording.experts[mine] == chosen).mean() > 0.9  # few rows and many are multiplied otherwise
        assert np.abs(recording.weights[mine].astype(np.float32) - weights).mean() < 0.05
    assert (recording.seconds > 0).all()
    assert recording.facts.cost is not None
    assert recording.facts.cost.layers == config.num_hidden_layers
    assert recording.facts.settings["workspace_bytes"] > 0


def test_guesses_are_those_of_the_routers_ahead(quantized: Path) -> None:
    """On sim the engine asks the same routers: what it counts as foreseen is what the recording has."""
    model = mixq.load(quantized, device="sim", vram="1GB", context=256, threads=1, miss="cpu")
    offload = model.placement.offload
    assert offload is not None
    offload.resize([2] * model.config.num_hidden_layers)
    recorder = Recorder(model)
    (task,) = recorder.tasks(built_in()[:1], max_tokens=12, temperature=0, ignore_eos=True)
    recorder.run("p", task)
    recording = recorder.recording()
    assert recording is not None
    replies = ~recording.is_prompt
    for ahead, counted in offload.telemetry.recall.by_lookahead().items():
        named = recording.predicted[replies, ahead - 1, ahead:]
        used = recording.experts[replies, ahead:]
        assert (named != NOTHING).all()
        hits = (used[..., :, None] == named[..., None, :]).any(axis=-1)
        assert float(hits.mean()) == pytest.approx(counted)
    for ahead in range(recording.facts.lookahead):
        assert (recording.predicted[:, ahead, : ahead + 1] == NOTHING).all(), "nobody stands before the first layers"
    assert (recording.predicted[recording.is_prompt][:, 0, 1:] != NOTHING).all(), "prompts too"


def test_looking_changes_nothing_and_the_device_changes_no_choice(
    cli: RunCli, quantized: Path, prompts: Path, tmp_path: Path
) -> None:
    found = []
    for device in (("--device", "cpu"), ("--device", "sim", "--vram", "1GB")):
        outcome = cli("trace", quantized, "--prompts", prompts, "-o", tmp_path / "r.mqt", *SHORT, *device)
        assert outcome.code == 0, outcome.err
        found.append(Recording.read(tmp_path / "r.mqt"))
    cpu, sim = found
    for name in ("tokens", "experts", "weights", "predicted", "prompt", "is_prompt"):
        assert np.array_equal(getattr(cpu, name), getattr(sim, name)), name
    assert (cpu.facts.device, sim.facts.device) == ("cpu", "sim")
    assert sim.facts.settings["quotas"]


def test_json_lines_with_names_and_messages(cli: RunCli, quantized: Path, tmp_path: Path) -> None:
    lines = [
        {"prompt": "One\nline", "name": "first"},
        {"messages": [{"role": "user", "content": "Two?"}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                      {"role": "user", "content": "c"}], "name": "talk"},
    ]  # fmt: skip
    text = "\n".join(json.dumps(line) for line in lines).encode()
    outcome = cli("trace", quantized, "--prompts", "-", "-o", tmp_path / "r.mqt", *SHORT, "--json", stdin=text)
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out)
    assert [p["name"] for p in document["prompts"]] == ["first", "Two?", "talk"]
    assert document["tokens"] == sum(p["prompt_tokens"] + p["tokens"] for p in document["prompts"])
    assert document["interrupted"] is False
    assert document["bytes"] == (tmp_path / "r.mqt").stat().st_size
    assert set(document["recall"]) == {"1"} | ({"2"} if document["layers"] > 2 else set())


def test_without_prompts_there_are_a_few(cli: RunCli, quantized: Path, tmp_path: Path) -> None:
    outcome = cli("trace", quantized, "-o", tmp_path / "r.mqt", *SHORT, "--max-tokens", "1", "--json")
    assert outcome.code == 0, outcome.err
    names = [p["name"] for p in json.loads(outcome.out)["prompts"]]
    assert names == [prompt.name for prompt in built_in()]
    assert {name.split(":")[0] for name in names} > {"English", "French", "German", "Code"}


def test_a_base_model_completes(cli: RunCli, quantized: Path, prompts: Path, tmp_path: Path) -> None:
    command = ("trace", quantized, "-o", tmp_path / "r.mqt", *SHORT, "--template", "none")
    assert cli(*command, "--prompts", prompts).code == 0
    model = mixq.load(quantized, device="cpu", context=256)
    ids = [*model.tokenizer.begin_ids, *model.tokenizer.encode("What is this?")]
    recording = Recording.read(tmp_path / "r.mqt")
    assert recording.tokens[: len(ids)].tolist() == ids
    talk = tmp_path / "talk.jsonl"
    talk.write_text('{"messages": [{"role": "user", "content": "a"}]}')
    outcome = cli(*command, "--prompts", talk)
    assert outcome.code == 2
    assert "no chat template" in outcome.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "has no prompt"),
        (b"\n \n", "has no prompt"),
        (b"\xff", "not UTF-8"),
        (b'{"prompt": "a"}\nplain', "line 2 is not JSON"),
        (b'{"prompt": 5}', "line 1: prompt is 5; it must be a string"),
        (b'{"prompt": " "}', "line 1: prompt is ' '; it must be a string that is not blank"),
        (b'{"name": "x"}', "either prompt or messages"),
        (b'{"prompt": "a", "messages": []}', "either prompt or messages"),
        (b'{"promt": "a"}', "Did you mean 'prompt'"),
        (b'{"prompt": "a", "name": 1}', "name is 1; it must be a string"),
        (b'{"messages": []}', "messages must be a list"),
        (b'{"messages": [{"role": "judge", "content": "a"}]}', "line 1: message role is 'judge'"),
        (b'{"messages": [{"role": "user"}]}', "line 1: message content is missing"),
        (b'{"messages": [{"role": "assistant", "content": "a"}]}', "user"),
        (b'{"prompt": "' + b"word " * 400 + b'"}', "The context holds 256|the context holds 256"),
    ],
)
def test_prompts_that_make_no_sense(cli: RunCli, quantized: Path, tmp_path: Path, text: bytes, said: str) -> None:
    path = tmp_path / "prompts"
    path.write_bytes(text)
    outcome = cli("trace", quantized, "--prompts", path, "-o", tmp_path / "r.mqt", *SHORT)
    assert outcome.code == 2, outcome.err
    assert any(part in outcome.err for part in said.split("|")), outcome.err
    assert not (tmp_path / "r.mqt").exists()


def test_what_is_refused_before_a_model_is_loaded(cli: RunCli, tmp_path: Path, prompts: Path) -> None:
    for arguments, code, said in (
        ((), 2, "Missing option"),
        (("-o", tmp_path), 2, "is a folder"),
        (("-o", tmp_path / "no" / "run.mqt"), 5, "is not a folder that you can write to"),
        (("-o", tmp_path / "r.mqt", "--max-tokens", "0"), 2, "--max-tokens is 0"),
        (("-o", tmp_path / "r.mqt", "--prompts", tmp_path / "none"), 3, "does not exist"),
        (("-o", tmp_path / "r.mqt", "--prompts", prompts, "--device", "gpu"), 2, "device is 'gpu'"),
    ):
        outcome = cli("trace", tmp_path / "nowhere", *arguments)
        assert (outcome.code, said in outcome.err) == (code, True), outcome.err


def test_a_dense_model_is_refused(cli: RunCli, tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "dense"
    write_tiny_mistral(folder)
    outcome = cli("trace", folder, "-o", tmp_path / "r.mqt", *SHORT)
    assert outcome.code == 2
    assert "dense, so it has no experts to record" in outcome.err


def test_ctrl_c_keeps_what_there_is(
    cli: RunCli, quantized: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    run = Recorder.run

    def broken_off(self: Recorder, name: str, task: object, *, cancel: threading.Event, on_token: object) -> object:
        def count(tokens: int) -> None:
            seen.append(tokens)
            if len(seen) == 8:  # in the second reply
                cancel.set()

        return run(self, name, task, cancel=cancel, on_token=count)  # type: ignore[arg-type]

    monkeypatch.setattr(Recorder, "run", broken_off)
    outcome = cli("trace", quantized, "--prompts", prompts, "-o", tmp_path / "r.mqt", *SHORT, "--json")
    assert outcome.code == 130
    assert json.loads(outcome.out)["interrupted"] is True
    recording = Recording.read(tmp_path / "r.mqt")
    assert len(recording) == sum(seen)
    assert recording.facts.prompts[1].tokens == 2


def test_two_interrupts_lose_nothing(
    cli: RunCli, quantized: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One in the middle of a pass, another while the file is written."""
    run, write, seen = Recorder.run, Recording.write, []

    def broken_off(self: Recorder, name: str, task: object, *, cancel: threading.Event, on_token: object) -> object:
        def count(tokens: int) -> None:
            seen.append(tokens)
            if len(seen) == 8:
                raise KeyboardInterrupt

        return run(self, name, task, cancel=cancel, on_token=count)  # type: ignore[arg-type]

    def interrupted(self: Recording, path: Path) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        write(self, path)

    monkeypatch.setattr(Recorder, "run", broken_off)
    monkeypatch.setattr(Recording, "write", interrupted)
    assert cli("trace", quantized, "--prompts", prompts, "-o", tmp_path / "r.mqt", *SHORT).code == 130
    assert len(Recording.read(tmp_path / "r.mqt")) == sum(seen)


def test_a_pipe_stays_a_pipe(cli: RunCli, quantized: Path, prompts: Path, tmp_path: Path) -> None:
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()))
    reader.start()
    assert cli("trace", quantized, "--prompts", prompts, "-o", pipe, *SHORT).code == 0
    reader.join(60)
    assert pipe.is_fifo()
    (tmp_path / "r.mqt").write_bytes(found[0])
    assert len(Recording.read(tmp_path / "r.mqt"))


def test_ctrl_c_before_the_first_token_writes_nothing(
    cli: RunCli, quantized: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken_off(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Recorder, "run", broken_off)
    outcome = cli("trace", quantized, "--prompts", prompts, "-o", tmp_path / "r.mqt", *SHORT)
    assert outcome.code == 130
    assert not (tmp_path / "r.mqt").exists()
