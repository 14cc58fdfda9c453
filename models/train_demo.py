"""Trains the demo model, from the tokenizer to the exported folder: `python models/train_demo.py` makes models/demo.

The conversations are the same on every machine; the weights differ between machines and builds of torch. --resume
resumes a stopped run. The learning rate warms up, stays constant, then falls linearly; --steps may be changed during
the constant phase.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import sentencepiece
import torch
import torch.nn.functional as F

from mixq.models import demo_data
from mixq.models.demo_export import export
from mixq.models.demo_network import DemoConfig, DemoNetwork
from mixq.models.demo_optimizer import MuonAdamW
from mixq.models.world import questions, score
from mixq.models.world.turn import Turn

STEPS = 1770
BATCH_TOKENS = 8192
WARM_UP, DECAY_FROM = 100, 700
MATRIX_LR, OTHER_LR = 4e-3, 4e-3
DEV_SEED, DEV_QUESTIONS = 1, 400
EVALUATE_EVERY, SAVE_SECONDS = 250, 300


def rate(step: int, steps: int) -> float:
    """Return the learning rate of a step, as a share of the largest."""
    return min((step + 1) / WARM_UP, 1.0, (steps - step) / max(steps - DECAY_FROM, 1))


@torch.no_grad()
def answers(network: DemoNetwork, tokenizer: sentencepiece.SentencePieceProcessor, turns: list[Turn]) -> list[str]:
    """Return the answers. Each token is predicted from the right tokens before it, so an answer is right exactly if
    greedy decoding would be."""
    texts: list[str] = []
    for start in range(0, len(turns), 50):
        batch = demo_data.question_batch(tokenizer, turns[start : start + 50])
        hidden, _, _ = network(batch.ids, batch.segments)
        predicted = network.logits(hidden).argmax(-1).view(batch.ids.shape)
        for row in range(len(batch.ids)):
            said = predicted[row][batch.weights[row] > 0].tolist()
            ended = said[-1] == demo_data.EOS and demo_data.EOS not in said[:-1]
            texts.append(tokenizer.decode(said[:-1]) if ended else "")
    return texts


def table(turns: list[Turn], texts: list[str]) -> str:
    scores = score(zip(turns, texts, strict=True))
    exact, asked = (sum(column) for column in zip(*scores.values(), strict=True))
    rows = [*scores.items(), ("all", (exact, asked))]
    return "\n".join(f"| {family} | {good} of {count} | {100 * good / count:.1f} % |" for family, (good, count) in rows)


def train(out: Path, steps: int, resume: bool, threads: int) -> DemoNetwork:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = DemoConfig()
    out.mkdir(parents=True, exist_ok=True)
    checkpoint, tokenizer_file = out / "checkpoint.pt", out / "tokenizer.model"
    if not resume:
        demo_data.train_tokenizer(tokenizer_file, config.vocab_size)
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_file))
    network = DemoNetwork(config)
    matrices = [p for name, p in network.named_parameters() if name.split(".")[-1] in ("q", "k", "v", "o", "w13", "w2")]
    others = [p for p in network.parameters() if all(p is not m for m in matrices)]
    optimizer = MuonAdamW(matrices, others)
    first = 0
    if resume:
        state = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    dev = questions(DEV_QUESTIONS, DEV_SEED)
    print(f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f} M weights, steps {first} to {steps}", flush=True)
    saved = logged = time.monotonic()
    for step in range(first, steps):
        batch = demo_data.training_batch(tokenizer, step, BATCH_TOKENS)
        hidden, balance, shares = network(batch.ids, batch.segments)
        weights = batch.weights.flatten()
        at = weights.nonzero().squeeze(1)
        losses = F.cross_entropy(network.logits(hidden[at]), batch.targets.flatten()[at], reduction="none")
        loss = (losses * weights[at]).sum() / weights.sum()
        (loss + config.router_aux_loss_coef * balance).backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        share = rate(step, steps)
        optimizer.step(MATRIX_LR * share, OTHER_LR * share)
        optimizer.zero_grad()
        if step % 20 == 0:
            now = time.monotonic()
            answer_loss = losses[weights[at] == 1].mean().item()
            speed = BATCH_TOKENS * 20 / (now - logged)
            usage = f"experts {shares.min().item():.3f} to {shares.max().item():.3f}, balance {balance.item():.3f}"
            print(f"step {step}: answer loss {answer_loss:.4f}, {usage}, {speed:.0f} tokens/s", flush=True)
            logged = now
        if (step + 1) % EVALUATE_EVERY == 0 and step + 1 < steps:
            print(table(dev, answers(network, tokenizer, dev)), flush=True)
        if time.monotonic() - saved > SAVE_SECONDS or step + 1 == steps:
            state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(state, checkpoint.with_suffix(".partial"))
            checkpoint.with_suffix(".partial").replace(checkpoint)
            saved = time.monotonic()
    return network


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "demo", help="the model folder to write")
    parser.add_argument("--work", type=Path, default=Path("build/demo-training"), help="checkpoint, tokenizer")
    parser.add_argument("--steps", type=int, default=STEPS, help="8,192 tokens each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resume", action="store_true", help="resume from the checkpoint in --work")
    arguments = parser.parse_args()
    network = train(arguments.work, arguments.steps, arguments.resume, arguments.threads)
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(arguments.work / "tokenizer.model"))
    export(network, arguments.work / "tokenizer.model", arguments.out)
    unseen = questions(DEV_QUESTIONS, 2)
    print(table(unseen, answers(network, tokenizer, unseen)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
