"""Make the bundled GPT-2 again from scratch: `python -m rlcourse.pretrain`.

A byte-level BPE and a small `transformers.GPT2LMHeadModel` are trained on the train split of the human-rated sentences.
Early epochs see all four sources, later ones fewer and fewer of those that are not film reviews, so that the model
first learns English and then how reviews are written. Interrupted, the same command resumes at the last finished epoch.
"""

import argparse
import math
import os
import random
from collections import defaultdict
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm.auto import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from rlcourse.data import load_human_ratings, text_key

END = "<|endoftext|>"  # opens and closes every text, as GPT-2's own token does


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) that puts END before every text it encodes."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
        ),  # its bar would print empty lines into notebooks
    )
    end_id = bpe.token_to_id(END)
    bpe.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, end_id)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=END, eos_token=END, clean_up_tokenization_spaces=False
    )


@torch.no_grad()
def bits_per_byte(lm, tokenizer, texts: list[str], batch_size: int = 64) -> float:
    """Nats of all tokens and of the closing END, over ln 2, over UTF-8 bytes; nothing is truncated."""
    was_training = lm.training
    lm.eval()
    nats = 0.0
    for i in range(0, len(texts), batch_size):
        ids, labels = _batch([_encode(tokenizer, text) for text in texts[i : i + batch_size]], lm.device)
        logits = lm(ids[:, :-1]).logits.float()
        nats += F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum").item()
    lm.train(was_training)
    return nats / math.log(2) / sum(len(text.encode()) for text in texts)


def _encode(tokenizer, text: str) -> list[int]:
    return tokenizer(text)["input_ids"] + [tokenizer.eos_token_id]


def _batch(rows: list[list[int]], device) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows padded on the right, [B, T] ids and labels; a label of -100 is not counted."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
    labels = torch.tensor([row + [-100] * (width - len(row)) for row in rows], device=device)
    return ids, labels


def _batches(rows: list[list[int]], tokens: int, rng: random.Random) -> list[list[list[int]]]:
    """Shuffled batches of about `tokens` tokens, rows of like length together so that little is padding."""
    rows = sorted(rows, key=lambda row: len(row) + 4 * rng.random())
    batches, batch = [], []
    for row in rows:
        if batch and len(row) * (len(batch) + 1) > tokens:
            batches, batch = [*batches, batch], []
        batch.append(row)
    batches.append(batch)
    rng.shuffle(batches)
    return batches


def _optimizers(lm, lr: float, muon_lr: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the blocks' matrices, AdamW for embeddings, gains and biases."""
    matrices = [p for name, p in lm.named_parameters() if p.ndim == 2 and ".h." in name]
    chosen = {id(p) for p in matrices}
    others = [p for p in lm.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=muon_lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.98)),
    ]


def _corpus() -> tuple[list[str], list[str]]:
    """Film reviews and other texts of the train split, without any sentence that stands in a held-out split."""
    table = load_human_ratings("all")
    held_out = {text_key(text) for text, part in zip(table.text, table.split) if part != "train"}
    kept = [(text, source) for text, source in zip(table.text, table.source) if text_key(text) not in held_out]
    return [t for t, s in kept if s == "movies"], [t for t, s in kept if s != "movies"]


def pretrain(out: Path, args: argparse.Namespace) -> GPT2LMHeadModel:
    """Train tokenizer and model, one checkpoint per epoch in `out`; resumes from the last one."""
    torch.manual_seed(args.seed)
    movies, others = _corpus()
    tokenizer = train_tokenizer(movies + others if args.others else movies, args.vocab_size)
    tokenizer.model_max_length = args.context
    end = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=args.context, n_embd=args.width, n_layer=args.layers, n_head=args.heads,
        bos_token_id=end, eos_token_id=end, resid_pdrop=args.dropout, embd_pdrop=args.dropout, attn_pdrop=args.dropout,
        activation_function="gelu_pytorch_tanh",  # GPT-2's "gelu_new", as one fused operation
    )  # fmt: skip
    lm = GPT2LMHeadModel(config).to("cuda" if torch.cuda.is_available() else "cpu")
    optimizers = _optimizers(lm, args.lr, args.muon_lr, args.weight_decay)
    rows = [[_encode(tokenizer, t)[: args.context] for t in texts] for texts in (movies, others)]
    validation = load_human_ratings("movies", "validation").text
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / "checkpoint.safetensors"
    start = _resume(checkpoint, lm, optimizers)
    for epoch in range(start, args.epochs):
        loss = _one_epoch(lm, optimizers, rows, epoch, args)
        bpb = bits_per_byte(lm, tokenizer, validation)
        print(
            f"epoch {epoch + 1}/{args.epochs}: loss {loss:.3f} nats a token, validation {bpb:.3f} bits a byte",
            flush=True,
        )
        _save(checkpoint, lm, optimizers, epoch)
    lm.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    return lm


def _save(checkpoint: Path, lm, optimizers, epoch: int) -> None:
    """Model and optimizers after an epoch, written beside the old checkpoint and then put in its place in one step."""
    tensors = {f"lm.{name}": tensor.clone() for name, tensor in lm.state_dict().items()}  # tied weights share memory
    for i, optimizer in enumerate(optimizers):
        for parameter, entries in optimizer.state_dict()["state"].items():
            tensors |= {f"{i}.{parameter}.{name}": tensor.clone() for name, tensor in entries.items()}
    partial = checkpoint.with_suffix(".partial")
    save_file(tensors, partial, metadata={"epoch": str(epoch)})
    os.replace(partial, checkpoint)


def _resume(checkpoint: Path, lm, optimizers) -> int:
    """Load the checkpoint, if there is one, and return the number of the epoch to go on with."""
    if not checkpoint.exists():
        return 0
    with safe_open(checkpoint, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        epoch = int(file.metadata()["epoch"])
    lm.load_state_dict({name[3:]: tensor for name, tensor in tensors.items() if name.startswith("lm.")})
    for i, optimizer in enumerate(optimizers):
        state = defaultdict(dict)
        for name, tensor in tensors.items():
            owner, parameter, entry = name.split(".", 2)
            if owner == str(i):
                state[int(parameter)][entry] = tensor
        optimizer.load_state_dict({"state": dict(state), "param_groups": optimizer.state_dict()["param_groups"]})
    return epoch + 1


def _one_epoch(lm, optimizers, rows, epoch: int, args) -> float:
    rng = random.Random(1000 * args.seed + epoch)
    torch.manual_seed(1000 * args.seed + epoch)  # so that a resumed run repeats the uninterrupted one
    movies, others = rows
    share = max(0.0, 1 - epoch / (args.epochs * args.until)) if args.others else 0.0
    batches = _batches(movies + rng.sample(others, int(share * len(others))), args.batch_tokens, rng)
    lm.train()
    total, count = 0.0, 0
    for i, batch in enumerate(bar := tqdm(batches, desc=f"epoch {epoch + 1}", mininterval=2)):
        progress = (epoch + i / len(batches)) / args.epochs
        factor = min(1.0, progress / args.warmup) * (1 - progress)
        for optimizer, peak in zip(optimizers, (args.muon_lr, args.lr)):
            optimizer.param_groups[0]["lr"] = peak * factor
        ids, labels = _batch(batch, lm.device)
        with torch.autocast(lm.device.type, torch.bfloat16, enabled=bool(args.bf16)):
            logits = lm(ids[:, :-1]).logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), labels[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        total, count = total + loss.item(), count + 1
        bar.set_postfix(loss=f"{total / count:.3f}")
    return total / count


def main() -> None:
    """Parse the command line, train, and print bits per byte on the test snippets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for name, default, explanation in [
        ("vocab-size", 4096, "tokens of the byte-level BPE"),
        ("width", 192, "size of a hidden state"),
        ("layers", 4, "transformer blocks"),
        ("heads", 4, "attention heads of a block"),
        ("context", 128, "longest text in tokens"),
        ("epochs", 16, "passes over the film reviews"),
        ("batch-tokens", 1024, "tokens of a batch, about"),
        ("dropout", 0.2, "share of activations set to zero"),
        ("lr", 2e-3, "peak learning rate of embeddings, gains and biases"),
        ("muon-lr", 2e-3, "peak learning rate of the blocks' matrices"),
        ("weight-decay", 0.1, "decoupled weight decay"),
        ("warmup", 0.02, "share of the run in which the learning rates rise"),
        ("others", 1, "0 leaves out the sources that are not film reviews"),
        ("until", 1.0, "share of the run by which the other sources have faded out"),
        ("bf16", 0, "1 computes in bfloat16: twice as fast on processors that have it, much slower on others"),
        ("seed", 0, "of weights, order and dropout"),
    ]:
        parser.add_argument(f"--{name}", type=type(default), default=default, help=explanation)
    parser.add_argument("--out", type=Path, default=Path("pretrained"), help="folder for checkpoint and result")
    args = parser.parse_args()
    lm = pretrain(args.out, args)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(args.out)
    bpb = bits_per_byte(lm.float(), tokenizer, load_human_ratings("movies", "test").text)
    print(f"{lm.num_parameters():,} parameters, {bpb:.3f} bits a byte on the 800 test movie snippets")


if __name__ == "__main__":
    main()
