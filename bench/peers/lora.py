#!/usr/bin/env python3
"""lora - what PEFT's LoRA makes of the same rows: `spa train`'s peer, for bench/learning.

    lora.py MODEL.gguf ROWS.jsonl --eval HELD.jsonl [--eval MORE.jsonl] [--epochs 3] [--eval-each] [--seed 1]

In: the cloud's GGUF (its weights are dequantised to F32), rows as `spa train` takes them, and raw text rows {"text": ...}. Out: one
JSON line for each evaluated file, after the last epoch or (--eval-each) after every one; notes go to stderr.

LoRA as it is mostly used: rank 8, alpha 16 on q_proj and v_proj, AdamW, batches of 16, learning rate 3e-3 (the best of
1e-3 and 3e-3 on the routing rows) with a short warm-up and then linear decay to zero at the end of the last epoch, so the last
epoch's figure is the one of a finished run and those before it are of runs broken off. Rows are
written, tokenized and scored as the cloud does it: ChatML without a system prompt, loss on answers and their end tokens,
greedy answers, exact match with white space at both ends aside. To be quick, batches hold rows of like length, and the LM head
is computed only where there is a loss.
"""
import argparse
import json
import math
import os
import random
import resource
import sys
import time
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TQDM_DISABLE", "1")
warnings.filterwarnings("ignore", category=FutureWarning)
import torch                                                              # noqa: E402
from gguf import GGUFReader                                               # noqa: E402
from peft import LoraConfig, get_peft_model                               # noqa: E402
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers   # noqa: E402
from transformers import AutoModelForCausalLM                             # noqa: E402

CONTROL, USER_DEFINED = 3, 4          # GGUF's token types that are found in text as a whole
PRE_TOKENIZERS = {                    # tokenizer.ggml.pre -> how text is split before the merges
    "smollm": lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                               pre_tokenizers.ByteLevel(add_prefix_space=False)]),
}


# ---- tokens: the GGUF's own vocabulary, since the converters of other libraries leave its way of splitting text aside ----

def read_tokenizer(path):
    """The tokenizer, and the ids that end an answer."""
    fields = GGUFReader(path).fields
    field = lambda name: fields["tokenizer.ggml." + name].contents()      # noqa: E731
    pre = field("pre")
    if field("model") != "gpt2" or pre not in PRE_TOKENIZERS:
        sys.exit(f"lora.py: {path} has a '{pre}' tokenizer; add it to PRE_TOKENIZERS")
    words, types = field("tokens"), field("token_type")
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)},
                                     [tuple(pair.split(" ")) for pair in field("merges")]))
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[pre]()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(word, normalized=False, special=True)
                                  for word, kind in zip(words, types) if kind in (CONTROL, USER_DEFINED)])
    ends = [words.index(word) for word in ("<|im_end|>", "<|endoftext|>") if word in words]
    return tokenizer, ends


class Row:
    """tokens [n]; loss_at: places i whose target tokens[i + 1] carries loss; prompt and answer: what is asked and expected."""

    def __init__(self, tokens, loss_at, prompt=None, answer=None):
        self.tokens, self.loss_at, self.prompt, self.answer = tokens, loss_at, prompt, answer


def messages_of(row):
    if "messages" in row:
        return row["messages"]
    user = row["instruction"] + ("\n\n" + row["input"] if row.get("input") else "")
    return [{"role": "user", "content": user}, {"role": "assistant", "content": row["output"]}]


def read_rows(path, tokenizer):
    ids = lambda text: tokenizer.encode(text).ids                         # noqa: E731
    rows = []
    for line in open(path, encoding="utf-8"):
        row = json.loads(line) if line.strip() else None
        if row and "text" in row:
            tokens = ids(row["text"])
            rows.append(Row(tokens, list(range(len(tokens) - 1))))
        elif row:
            tokens, loss_at, prompt, pending = [], [], None, ""
            for message in messages_of(row):
                if message["role"] == "assistant":
                    tokens += ids(pending + "<|im_start|>assistant\n")
                    prompt, answer = list(tokens), ids(message["content"] + "<|im_end|>")
                    loss_at += range(len(tokens) - 1, len(tokens) - 1 + len(answer))
                    tokens += answer
                    pending = "\n"
                else:
                    pending += f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n"
            rows.append(Row(tokens, loss_at, prompt, message["content"]))
    return rows


# ---- loss ----

def loss_of(model, batch, pad):
    """Sum of the cross-entropies of a batch of rows, padded on the right, and how many there are."""
    width = max(len(row.tokens) for row in batch)
    tokens = torch.full((len(batch), width), pad)
    mask = torch.zeros(len(batch), width, dtype=torch.long)
    for i, row in enumerate(batch):
        tokens[i, :len(row.tokens)] = torch.tensor(row.tokens)
        mask[i, :len(row.tokens)] = 1
    at = torch.tensor([(i, j) for i, row in enumerate(batch) for j in row.loss_at])
    base = model.get_base_model()
    states = base.model(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state
    logits = base.lm_head(states[at[:, 0], at[:, 1]])
    return torch.nn.functional.cross_entropy(logits, tokens[at[:, 0], at[:, 1] + 1], reduction="sum"), len(at)


def batches_of(rows, size, shuffle):
    """Rows of like length together: shuffled, sorted within 20 batches, and the batches shuffled again."""
    order = list(range(len(rows)))
    shuffle.shuffle(order)
    pools = [sorted(order[i:i + 20 * size], key=lambda r: len(rows[r].tokens)) for i in range(0, len(order), 20 * size)]
    batches = [[rows[r] for r in pool[i:i + size]] for pool in pools for i in range(0, len(pool), size)]
    shuffle.shuffle(batches)
    return batches


# ---- evaluation ----

@torch.no_grad()
def exact_matches(model, rows, tokenizer, ends, size=64):
    """Greedy answers, prompts padded on the left; one token more than the longest right answer tells a longer one from it."""
    most = max(len(row.tokens) - len(row.prompt) for row in rows) + 1
    order, right = sorted(rows, key=lambda row: len(row.prompt)), 0
    for start in range(0, len(order), size):
        batch = order[start:start + size]
        width = max(len(row.prompt) for row in batch)
        tokens = torch.tensor([[ends[0]] * (width - len(row.prompt)) + row.prompt for row in batch])
        mask = torch.tensor([[0] * (width - len(row.prompt)) + [1] * len(row.prompt) for row in batch])
        said = model.generate(input_ids=tokens, attention_mask=mask, do_sample=False, max_new_tokens=most,
                              eos_token_id=ends, pad_token_id=ends[0])
        for row, answer in zip(batch, said[:, width:].tolist()):
            stop = next((i for i, t in enumerate(answer) if t in ends), len(answer))
            right += tokenizer.decode(answer[:stop], skip_special_tokens=False).strip(" \t\n\r\v\f") == \
                row.answer.strip(" \t\n\r\v\f")
    return right


@torch.no_grad()
def mean_loss(model, rows, pad, size=16):
    order, total, n = sorted(rows, key=lambda row: len(row.tokens)), 0.0, 0
    for i in range(0, len(order), size):
        loss, count = loss_of(model, order[i:i + size], pad)
        total, n = total + loss.item(), n + count
    return total / n


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("model")
    p.add_argument("rows")
    p.add_argument("--eval", action="append", default=[], metavar="FILE")
    p.add_argument("--epochs", type=int, default=3)
    p.add_argument("--eval-each", action="store_true", help="evaluate after every epoch, not only after the last")
    p.add_argument("--eval-base", action="store_true", help="evaluate the untrained model too, as epoch 0")
    p.add_argument("--loss", action="store_true", help="the loss on evaluated answers too (it is always there for raw text)")
    p.add_argument("--lr", type=float, default=3e-3)
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--rank", type=int, default=8)
    p.add_argument("--alpha", type=int, default=16)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--threads", type=int, default=os.cpu_count())
    o = p.parse_args()
    started = time.monotonic()
    torch.set_num_threads(o.threads)
    torch.manual_seed(o.seed)
    shuffle = random.Random(o.seed)

    tokenizer, ends = read_tokenizer(o.model)
    rows = read_rows(o.rows, tokenizer)
    held = {path: read_rows(path, tokenizer) for path in o.eval}
    folder, name = os.path.split(os.path.abspath(o.model))
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32, local_files_only=True)
    model = get_peft_model(model, LoraConfig(r=o.rank, lora_alpha=o.alpha, target_modules=["q_proj", "v_proj"],
                                             task_type="CAUSAL_LM"))
    weights = [w for w in model.parameters() if w.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=o.lr, weight_decay=0.01)
    steps = o.epochs * math.ceil(len(rows) / o.batch)
    warm_up = max(1, min(20, steps // 10))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warm_up, (steps - s) / max(1, steps - warm_up)))
    loaded = time.monotonic() - started
    print(f"{len(rows)} rows, {sum(len(r.tokens) for r in rows)} tokens, {sum(len(r.loss_at) for r in rows)} with loss; "
          f"{sum(w.numel() for w in weights)} parameters, {steps} steps, loaded in {loaded:.1f} s", file=sys.stderr)

    spent = {"train": 0.0, "eval": 0.0}

    def evaluate(epoch, train_loss):
        model.eval()
        for path, some in held.items():
            began = time.monotonic()
            asked = [row for row in some if row.answer is not None]
            loss = mean_loss(model, some, ends[0]) if o.loss or not asked else None
            exact = exact_matches(model, asked, tokenizer, ends) if asked else None
            spent["eval"] += time.monotonic() - began
            print(json.dumps({
                "peer": "lora", "epoch": epoch, "of": o.epochs, "rows": os.path.basename(o.rows), "train_rows": len(rows),
                "eval": os.path.basename(path), "eval_rows": len(some), "exact": exact,
                "exact_match": exact / len(asked) if asked else None, "loss": loss, "perplexity": math.exp(loss) if loss is not None else None,
                "train_loss": train_loss, "seed": o.seed, "lr": o.lr, "seconds_load": round(loaded, 2),
                "seconds_train": round(spent["train"], 2), "seconds_eval": round(spent["eval"], 2),
                "seconds_total": round(time.monotonic() - started, 2),
                "rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)}), flush=True)

    if o.eval_base:
        evaluate(0, None)
    for epoch in range(1, o.epochs + 1):
        began, total, n = time.monotonic(), 0.0, 0
        model.train()
        for batch in batches_of(rows, o.batch, shuffle):
            loss, count = loss_of(model, batch, ends[0])
            (loss / count).backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            total, n = total + loss.item(), n + count
        spent["train"] += time.monotonic() - began
        print(f"epoch {epoch}/{o.epochs}: loss {total / n:.4f}, {spent['train']:.1f} s", file=sys.stderr)
        if o.eval_each or epoch == o.epochs:
            evaluate(epoch, total / n)


if __name__ == "__main__":
    main()
